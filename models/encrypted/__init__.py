"""Training and evaluation as they run encrypted."""
