"""Smaller models: static pruning, dynamic gates, and both trained together."""
