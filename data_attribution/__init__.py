"""Trace a behaviour back to the documents that taught it, and check the result by retraining."""
