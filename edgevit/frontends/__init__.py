"""Foreign models to Programs: timm, T2T-ViT, checkpoints of every naming, and the refusals."""
