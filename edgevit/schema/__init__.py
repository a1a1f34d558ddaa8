"""What is written for others: manifest, measurement, quantization plan, target, recipe, memory bound."""
