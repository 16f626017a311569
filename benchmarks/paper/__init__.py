"""The published model: its plans, a sentence encrypted, its tables and its ratios."""
