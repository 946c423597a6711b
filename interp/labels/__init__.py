"""What tokens are, and how well that is read off activations."""
