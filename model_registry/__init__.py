"""Models are recorded, packaged, promoted and served here; no other package imports MLflow.

`released/` holds small real models that a fresh clone predicts with; its README says what a
released folder is.
"""
