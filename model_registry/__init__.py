"""The door out: recording, packaging, promoting and serving models."""
