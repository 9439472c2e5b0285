"""What these tests share: property tests that do not fail because another process keeps the machine busy."""

from hypothesis import settings

settings.register_profile("no deadline", deadline=None, database=None)
settings.load_profile("no deadline")
