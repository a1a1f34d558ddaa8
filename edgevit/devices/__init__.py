"""Machines that a bundle is measured on: this one, a board over ssh, an emulated processor."""
