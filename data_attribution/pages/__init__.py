"""Sources as one HTML page, and the figures in it."""
