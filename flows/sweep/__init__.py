"""A search over settings with Ray Tune."""
