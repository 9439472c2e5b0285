"""What the search service answers, by subject."""
