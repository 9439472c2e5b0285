"""The one error that a person is meant to read."""


class LensError(Exception):
    """One sentence that names the thing and the remedy; the CLI and the jobs print it and exit with 1."""
