"""Samples: nested, repeatable, and as large as was asked for."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.sampling import bin_of, lowest_bins, sample_number, water_fill

numbers = st.integers(0, 2**64 - 1)


class TestSamples:
    def test_are_the_same_in_another_process(self) -> None:
        code = "from models.sampling import sample_number; print(sample_number('salt', 'm1'))"
        other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert int(other.stdout) == sample_number("salt", "m1") != sample_number("pepper", "m1")

    def test_are_spread_evenly(self) -> None:
        eighths = Counter(sample_number("salt", f"m{n}") >> 61 for n in range(8000))
        assert set(eighths) == set(range(8))
        # Five standard deviations of a binomial count.
        assert all(abs(count - 1000) < 150 for count in eighths.values())

    @given(numbers, numbers)
    def test_bins_rise_with_the_numbers(self, one: int, other: int) -> None:
        assert (bin_of(one) <= bin_of(other)) if one <= other else (bin_of(one) >= bin_of(other))

    @given(numbers)
    def test_a_bin_is_narrow(self, number: int) -> None:
        wider = number + number // 2**15 + 1
        assert wider >= 2**64 or bin_of(wider) > bin_of(number)

    @given(st.sets(numbers, max_size=60), st.integers(0, 70), st.integers(0, 70))
    def test_a_larger_one_contains_the_smaller(self, drawn: set[int], quota: int, more: int) -> None:
        counts = Counter(map(bin_of, drawn))
        small, large = lowest_bins(counts, quota), lowest_bins(counts, quota + more)
        turns = {number: small.turn(number) for number in drawn}
        assert sum(turn is not None for turn in turns.values()) == small.total <= quota
        for number, turn in turns.items():
            if turn is not None:
                assert large.turn(number) == turn <= quota

    @given(st.sets(numbers, min_size=1, max_size=60), st.integers(0, 70))
    def test_take_the_lowest_up_to_the_quota_short_of_it_by_less_than_a_bin(self, drawn: set[int], quota: int) -> None:
        counts = Counter(map(bin_of, drawn))
        taken = lowest_bins(counts, quota)
        assert [n for n in sorted(drawn) if taken.turn(n) is not None] == sorted(drawn)[: taken.total]
        if taken.total < len(drawn):
            assert taken.total + counts[bin_of(sorted(drawn)[taken.total])] > quota

    def test_of_some_items_are_exact_and_of_many_nearly(self) -> None:
        numbers = [sample_number("salt", f"m{n}") for n in range(20_000)]
        few = Counter(map(bin_of, numbers[:100]))
        assert [lowest_bins(few, quota).total for quota in range(101)] == list(range(101))
        many = Counter(map(bin_of, numbers))
        assert all(quota - 5 < lowest_bins(many, quota).total <= quota for quota in range(100, 20_000, 997))


class TestWaterFilling:
    @pytest.mark.parametrize(
        ("counts", "wanted", "quota"),
        [([10, 2, 5], 9, 3), ([10, 2, 5], 12, 5), ([10, 2, 5], 11, 4), ([10, 2, 5], 100, 10), ([4], 3, 3), ([], 5, 0)],
    )
    def test_by_hand(self, counts: list[int], wanted: int, quota: int) -> None:
        assert water_fill(counts, wanted) == quota

    @given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 200))
    def test_is_the_largest_quota_that_fits(self, counts: list[int], wanted: int) -> None:
        quota = water_fill(counts, wanted)
        assert sum(min(count, quota) for count in counts) <= wanted
        assert quota == max(counts) or sum(min(count, quota + 1) for count in counts) > wanted
