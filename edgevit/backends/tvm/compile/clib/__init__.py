"""A compiled model as a C library of its own: no runtime, no heap, no files; memory and weights are the caller's."""
