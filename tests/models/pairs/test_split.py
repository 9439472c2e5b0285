from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.pairs.split import split_of
from models.sampling import sample_number

GROUPS = [f"product p{n}" for n in range(4000)]
shares = st.floats(0.001, 0.499)


class TestSplits:
    @pytest.mark.parametrize(("split", "share"), [("validation", 0.1), ("test", 0.2), ("train", 0.7)])
    def test_keep_to_the_shares(self, split: str, share: float) -> None:
        count = sum(split_of("salt", group, 0.1, 0.2) == split for group in GROUPS)
        # Five standard deviations of a binomial count.
        assert abs(count - share * 4000) < 5 * (4000 * share * (1 - share)) ** 0.5

    @given(st.text(), st.text(), shares, shares, shares, shares)
    def test_of_larger_shares_contain_those_of_smaller_ones(
        self, salt: str, group: str, validation: float, test: float, more_validation: float, more_test: float
    ) -> None:
        before = split_of(salt, group, validation, test)
        after = split_of(salt, group, max(validation, more_validation), max(test, more_test))
        assert after == before or before == "train"

    @given(st.text(), st.text(), shares, shares, shares)
    def test_do_not_depend_on_each_other(
        self, salt: str, group: str, validation: float, other: float, test: float
    ) -> None:
        """Another share of validation moves nothing into or out of the test."""
        is_tested = [split_of(salt, group, share, test) == "test" for share in (validation, other)]
        assert is_tested[0] == is_tested[1]

    @given(st.lists(st.sampled_from(GROUPS[:50]), min_size=1), st.data())
    def test_are_a_group_s_own_whatever_comes_beside_it_in_whatever_order(
        self, groups: Sequence[str], data: st.DataObject
    ) -> None:
        parts = {group: split_of("salt", group, 0.3, 0.3) for group in groups}
        more = data.draw(st.permutations([*groups, *GROUPS[50:60]]))
        assert {group: split_of("salt", group, 0.3, 0.3) for group in more}.items() >= parts.items()

    def test_do_not_follow_the_draw(self) -> None:
        items = sorted((f"m{n}" for n in range(4000)), key=lambda item: sample_number("salt", item))
        first = sum(split_of("salt", item, 0.5, 0.1) == "validation" for item in items[:400])
        assert 150 < first < 250
