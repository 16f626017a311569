"""Which stages to refresh: their costs at each level, and the search among plans."""
