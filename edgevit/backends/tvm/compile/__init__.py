"""From a Program to a shared library and a runner for a device."""
