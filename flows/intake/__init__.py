"""A watched folder or bucket becomes labelled photos under DVC."""
