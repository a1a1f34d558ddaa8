"""The Program: a model as data, its folder on disk, its MACs, and what is kept of the original it came from."""
