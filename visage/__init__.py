"""Tensors to tensors: label distributions of age and attractiveness from face photos."""
