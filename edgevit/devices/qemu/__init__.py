"""An emulated processor: qemu in user mode, its user land, and what its counted instructions say."""
