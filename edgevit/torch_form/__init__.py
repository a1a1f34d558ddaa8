"""A Program as a torch module."""
