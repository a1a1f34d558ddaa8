"""Building TIR: statements, layout of values, threads, instructions, schedules."""
