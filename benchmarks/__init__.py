"""Programs that time marginalia beside its peers: `python -m benchmarks.run`. Nothing here asserts a time."""
