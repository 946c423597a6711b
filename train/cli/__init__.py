"""The commands `openbook corpus`, `train` and `run`."""
