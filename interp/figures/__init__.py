"""Figures of whole analyses, and the files they are written to."""
