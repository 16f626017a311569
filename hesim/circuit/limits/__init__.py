"""What a Circuit may take: within a number of bytes, with fewer rotation keys."""
