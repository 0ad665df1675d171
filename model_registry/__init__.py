"""The door out: models are recorded, packaged, promoted and served here, and nothing else in the
tree knows MLflow.

`released/` holds small real models that answer a photo on a fresh clone; its README says what a
released folder is.
"""
