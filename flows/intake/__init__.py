"""Brings labelled photos of a watched folder or bucket under DVC."""
