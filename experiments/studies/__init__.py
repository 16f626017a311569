"""Studies over many models: resumable, with a table at the end."""
