"""Unlabelled photos become a labelled table."""
