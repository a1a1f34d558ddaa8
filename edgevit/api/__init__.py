"""One call each for the main commands."""
