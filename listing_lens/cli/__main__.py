"""`python -m listing_lens.cli`, which is `lens`."""

from listing_lens.cli import app

app()
