"""Scores photos in bulk with a model, to parquet."""
