"""The decoder's choices, one file a choice."""
