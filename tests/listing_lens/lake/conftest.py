"""What the lake's tests share: a Cloud Storage that keeps its conditions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conditional_storage import Storage, conditional_storage


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """A server that this test's clients take for Cloud Storage; its one bucket is `bucket`."""
    with conditional_storage() as storage:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage.address)
        yield storage
