"""Merging tokens that are alike at a few points: which points, by search on unlabelled images."""
