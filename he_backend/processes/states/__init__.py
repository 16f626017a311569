"""Results that are arguments of the next batch: where they lie, and who reads them."""
