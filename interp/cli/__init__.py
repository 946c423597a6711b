"""The commands that look into a model."""
