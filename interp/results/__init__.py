"""What analyses find, as data that remembers what it was computed from."""
