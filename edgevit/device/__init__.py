"""Devices that are not this machine, reached with the system's own tools."""
