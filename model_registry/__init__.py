"""Models are recorded, packaged, promoted and served here; no other package imports MLflow."""
