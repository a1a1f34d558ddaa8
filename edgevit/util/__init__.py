"""What every room may use and none owns: strict JSON, limits, files that appear whole, progress."""
