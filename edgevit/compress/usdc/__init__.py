"""USDC: static pruning and dynamic gates trained together (arXiv 2310.11117); docs/usdc.md says what is ours."""
