"""What a plan is chosen for: its price, its objective, and what it carries to the next run."""
