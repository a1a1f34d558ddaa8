"""TVM: kernels and an emitter of our own, from a Program to one shared library per device."""
