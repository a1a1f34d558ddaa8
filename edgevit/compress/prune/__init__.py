"""Static pruning: statistics, scores, plan, smaller tensors, repair."""
