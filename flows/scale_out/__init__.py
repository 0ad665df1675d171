"""A stage on a Ray cluster."""
