"""The commands that look for documents, and `openbook` itself."""
