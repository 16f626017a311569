"""What a run shows: the exact twin, comparisons, the page."""
