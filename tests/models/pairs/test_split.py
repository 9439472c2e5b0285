from __future__ import annotations

from models.pairs.split import split_of
from models.sampling import sample_number


class TestSplits:
    def test_keep_to_the_share_and_contain_those_of_a_smaller_share(self) -> None:
        groups = [f"product p{n}" for n in range(4000)]
        tenth = {group for group in groups if split_of("salt", group, 0.1) == "validation"}
        # Five standard deviations of a binomial count.
        assert abs(len(tenth) - 400) < 95
        assert tenth < {group for group in groups if split_of("salt", group, 0.2) == "validation"}

    def test_do_not_follow_the_draw(self) -> None:
        items = sorted((f"m{n}" for n in range(4000)), key=lambda item: sample_number("salt", item))
        first = sum(split_of("salt", item, 0.5) == "validation" for item in items[:400])
        assert 150 < first < 250
