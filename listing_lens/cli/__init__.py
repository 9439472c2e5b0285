"""`lens`: the jobs and servers that Airflow schedules, from the command line."""

from listing_lens.cli.main import app

__all__ = ["app"]
