"""Models: the Program, and what turns foreign models into one."""
