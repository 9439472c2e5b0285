from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest

from listing_lens.errors import LensError
from listing_lens.finetuning.window import training_window
from listing_lens.lake.window import Window


class TestWindow:
    DAYS = tuple(
        Window(datetime(2026, 6, 1, tzinfo=UTC) + n * timedelta(days=1), datetime(2026, 6, 2, tzinfo=UTC) + n * timedelta(days=1))
        for n in range(3)
    )  # fmt: skip

    def test_is_what_has_landed(self) -> None:
        assert training_window(self.DAYS, None, None) == Window(self.DAYS[0].start, self.DAYS[-1].end)

    def test_reaches_back_three_months_and_no_further(self) -> None:
        old = Window(datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 1, 2, tzinfo=UTC))
        window = training_window((old, *self.DAYS), None, None)
        assert window == Window(datetime(2026, 3, 5, tzinfo=UTC), datetime(2026, 6, 4, tzinfo=UTC))

    def test_is_what_was_asked_for(self) -> None:
        asked = Window(datetime(2026, 6, 2, tzinfo=UTC), datetime(2026, 6, 3, tzinfo=UTC))
        assert training_window(self.DAYS, date(2026, 6, 2), date(2026, 6, 3)) == asked

    def test_one_bound_may_be_left_out(self) -> None:
        assert training_window(self.DAYS, date(2026, 6, 2), None).end == self.DAYS[-1].end
        assert training_window(self.DAYS, None, date(2026, 6, 3)).start == self.DAYS[0].start

    def test_an_end_before_the_start_is_refused(self) -> None:
        with pytest.raises(LensError, match="is empty: the end must be later than the start"):
            training_window(self.DAYS, date(2026, 6, 3), date(2026, 6, 2))

    def test_without_listings_there_is_none(self) -> None:
        with pytest.raises(LensError, match="no listings have landed in the lake"):
            training_window((), None, date(2026, 6, 3))
