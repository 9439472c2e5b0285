"""What a run leaves behind says of all its windows what it says of each."""

from __future__ import annotations

from collections import Counter

from beam_jobs.transforms.merging import Summary


def test_a_summary_totals_its_windows() -> None:
    summary = Summary({"one": {"read": 2, "embedded": 2}, "two": {"read": 3, "older": 1}}, ())
    assert summary.total() == Counter(read=5, embedded=2, older=1)
