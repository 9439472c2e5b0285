"""The lake: everything that is kept for good."""
