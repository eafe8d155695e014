"""One file per metric: pure functions over numpy arrays. Only features.py holds a network."""
