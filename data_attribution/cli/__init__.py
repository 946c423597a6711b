"""The `openbook` command, and its commands for data attribution."""
