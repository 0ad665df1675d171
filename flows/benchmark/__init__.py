"""Makes the papers' tables, cell by cell."""
