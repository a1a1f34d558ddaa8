"""What a compiled library says about itself, read without running it."""
