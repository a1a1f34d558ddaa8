"""Images as input: sources, decoding, preparing, labels, and whether they can calibrate."""
