"""All suffixes of a corpus, sorted: how they are cut, sorted, kept on disk and searched."""
