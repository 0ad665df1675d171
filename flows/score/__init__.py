"""Photos in bulk through a model, to parquet."""
