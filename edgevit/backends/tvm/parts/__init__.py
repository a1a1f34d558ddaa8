"""The parts of a ViT as lists of kernels."""
