"""Mechanistic interpretability: behaviours, activations, patching, circuits, heads and probes."""
