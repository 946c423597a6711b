"""From a behaviour back to the documents that taught it, and the proof by retraining."""
