"""Dynamic gates: initial gates, training, thresholds."""
