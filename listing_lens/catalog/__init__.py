"""Where a catalog comes from: a made one to try things with (``lens catalog make``), or a user's own file."""
