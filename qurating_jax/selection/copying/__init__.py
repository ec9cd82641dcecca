"""The selected documents out: rows in files, ids in a list."""
