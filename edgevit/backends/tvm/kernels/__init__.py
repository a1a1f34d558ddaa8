"""Kernels on the arena."""
