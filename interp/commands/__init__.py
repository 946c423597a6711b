"""The commands of `openbook` that look inside a model, one file a noun."""
