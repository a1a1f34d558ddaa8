"""What a model's output means: classes, and how far quantization moves them."""
