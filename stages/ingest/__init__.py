"""Locations to a raw folder and manifest rows: fetching, unpacking, splits, the manifest's
database."""
