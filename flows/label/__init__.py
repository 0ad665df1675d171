"""Makes a labelled table of unlabelled photos."""
