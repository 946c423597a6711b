"""Compiled programs, whose circuits are known exactly."""
