"""Executes Circuits: instructions on any machine, and a machine on plain vectors."""
