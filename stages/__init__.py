"""Files to files: one module per stage of dvc.yaml."""
