"""The commands of `openbook` that look for causes in the training text, one file a noun."""
