"""The parts of replay attribution: states on disk, and one training step backwards."""
