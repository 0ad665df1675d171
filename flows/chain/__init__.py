"""Chains of fine-tuning: each link starts from the model of the one before."""
