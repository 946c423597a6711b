"""The graph of a model: edges cut exactly, scored, chosen and checked."""
