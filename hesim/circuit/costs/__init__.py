"""What runs of Circuits cost: the table of figures, and memory."""
