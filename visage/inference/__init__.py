"""Crops or photos to predictions: engines, decoding, calibration, fusion."""
