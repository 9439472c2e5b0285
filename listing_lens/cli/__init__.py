"""`lens`: the same jobs and servers that Airflow schedules, for a person at a terminal."""

from listing_lens.cli.main import app

__all__ = ["app"]
