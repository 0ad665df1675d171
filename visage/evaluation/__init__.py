"""Predictions and labels to figures: metrics, intervals, tables, plots, pages."""
