"""The approximation module beside the optimum, the paper and other planners."""
