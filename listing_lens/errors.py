"""The project's error, under the name that everything above `models` imports it by."""

from models.errors import LensError

__all__ = ["LensError"]
