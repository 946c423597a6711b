"""How activations are kept on disk."""
