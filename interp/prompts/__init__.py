"""Where the prompts of behaviours come from."""
