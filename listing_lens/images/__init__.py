"""Reading photos: which addresses are allowed, and how they are fetched."""
