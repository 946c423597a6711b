"""Opening up a trained model: hooks, caches, behaviours, patching."""
