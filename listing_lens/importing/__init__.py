"""What users bring: their own catalog, from a file."""
