"""What these tests share: property tests that wait for a busy machine."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("no deadline", deadline=None, database=None)
settings.load_profile("no deadline")
