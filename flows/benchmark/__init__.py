"""The papers' tables, cell by cell."""
