"""Photos by their addresses: which may be read, and how they are fetched."""
