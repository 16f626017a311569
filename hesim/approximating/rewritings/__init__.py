"""What takes several values, or compares them, written with functions of one value."""
