"""What the command line and a notebook call, one file per verb; `edgevit/__init__.py` gives the public names."""
