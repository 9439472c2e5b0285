"""What is said of a listing: each way to be found, or not to be, has a sentence of its own, and names what to do."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from tiny import FIRST, SECOND, listing

from listing_lens.lake.dead_letters import Letter
from listing_lens.lake.records import Refused
from listing_lens.search.builds import State
from listing_lens.search.documents import Refusal
from listing_lens.search.lineage import (
    Beside,
    Facts,
    InIndex,
    InLake,
    Progress,
    Reading,
    Row,
    Source,
    compare,
    explain,
)

NOW = datetime(2026, 11, 5, tzinfo=UTC)
ENCODER = "small-1"
ROW = Row(10, "on_sale", NOW, FIRST, "ab", "float32", changed_in=3)
SOLD = replace(ROW, status="sold", photo=None, backend=None)
LAKE = InLake(ENCODER, 5, ROW)
LIVE = InIndex("listings-one", State.LIVE, "space", ENCODER, version=10, status="on_sale", findable=True, reached=5)
ABSENT = replace(LIVE, version=None, status=None, findable=False)


def failed(
    *, attempts: int = 3, transient: bool = True, stage: str = "fetch", minute: int = 0, now: datetime = NOW
) -> Letter:
    reason = "the server answered 503"
    return Letter.of_listing(
        listing("m1", SECOND, minute=minute), SECOND, stage, reason, transient=transient, attempts=attempts, now=now
    )


def said(lake: InLake = LAKE, live: InIndex | None = LIVE, **rest: object) -> list[str]:
    facts = Facts("m1", lakes=(lake,), indexes=(live,) if live else (), **rest)  # type: ignore[arg-type]
    return explain(facts, NOW)


class TestTheAnswer:
    def test_found_in_its_newest_version(self) -> None:
        assert said() == ["It is searchable in the live index, in its newest version."]

    def test_found_in_an_older_version(self) -> None:
        assert said(live=replace(LIVE, version=9, reached=2)) == [
            "It is searchable in the live index, in an older version than the lake's: the index is loaded up to version 2 "
            "of 5 of the table, and its row changed in 3: the next load brings it."
        ]

    def test_found_in_a_newer_version(self) -> None:
        [sentence] = said(live=replace(LIVE, version=11))
        assert sentence.startswith("It is searchable in the live index, in a newer version than the lake's: ")

    def test_found_though_the_lake_does_not_have_it(self) -> None:
        [sentence] = said(InLake(ENCODER, 5))
        assert sentence.startswith("It is searchable in the live index, but the lake does not have it: ")
        assert "--repair" in sentence

    def test_sold(self) -> None:
        assert said(replace(LAKE, row=SOLD), replace(LIVE, status="sold", findable=False)) == [
            "It is sold since 2026-11-05 00:00:00, so no search finds it."
        ]

    def test_sold_and_forgotten_by_the_lake(self) -> None:
        assert said(InLake(ENCODER, 5), replace(LIVE, status="sold", findable=False)) == [
            "It was sold, so no search finds it, and the lake has forgotten it."
        ]

    def test_not_found_since_no_index_is_live(self) -> None:
        assert said(live=None) == ["It is not searchable: no index is live; build one with `lens index rebuild`."]

    def test_not_found_since_the_index_refused_it(self) -> None:
        [sentence] = said(live=replace(ABSENT, refusal=Refusal("m1", 10, "it is too long")))
        assert sentence.startswith(
            "It is not searchable: Elasticsearch refused its newest version (it is too long): correct"
        )

    def test_not_found_before_the_next_refresh(self) -> None:
        [sentence] = said(live=replace(LIVE, findable=False))
        assert sentence.startswith("It is not searchable: no search can find it, until the next refresh")

    def test_not_found_for_no_reason(self) -> None:
        [sentence] = said(live=ABSENT)
        assert sentence.endswith("the load left no reason: `lens index verify listings-one --repair` mends it.")

    def test_unknown(self) -> None:
        [sentence] = said(InLake(ENCODER, 5), ABSENT)
        assert sentence.startswith("Nothing is known of 'm1': ")

    def test_unknown_in_an_empty_lake(self) -> None:
        [sentence] = explain(Facts("m1"), NOW)
        assert sentence.startswith("Nothing is known of 'm1': ")

    def test_known_only_to_another_encoder(self) -> None:
        other = replace(LAKE, encoder_id="other-1")
        [sentence] = explain(Facts("m1", lakes=(other, InLake(ENCODER, 5)), indexes=(ABSENT,)), NOW)
        assert sentence.startswith("It is not searchable: other-1 knows it, but not the table of small-1.")

    def test_of_the_lake_alone_when_the_cluster_is_away(self) -> None:
        facts = Facts("m1", lakes=(InLake("a-1", 0), LAKE), indexes=None, troubles=("The indexes were not looked at",))
        assert explain(facts, NOW) == [
            "The lake has it as on_sale, in its version of 2026-11-05 00:00:00, embedded by small-1.",
            "The indexes were not looked at.",
        ]


class TestADeadLetter:
    @pytest.mark.parametrize(
        ("letter", "words"),
        [
            (
                failed(),
                "its photo could not be fetched (the server answered 503), 3 tries, the next one at 2026-11-05 01:00:00",
            ),
            (failed(attempts=1, now=NOW - timedelta(days=1)), "1 try, the next one is due"),
            (failed(attempts=8), "8 tries, no other will be made by itself"),
            (
                failed(stage="decode", transient=False),
                "could not be decoded (the server answered 503), 3 tries, no other",
            ),
        ],
        ids=["waits", "is due", "was tried too often", "is permanent"],
    )
    def test_says_why_an_item_was_never_embedded(self, letter: Letter, words: str) -> None:
        [sentence] = said(InLake(ENCODER, 5, letters=(letter,)), ABSENT)
        assert sentence.startswith("It is not searchable: its photo")
        assert words in sentence

    def test_says_why_a_newer_version_is_not_there(self) -> None:
        first, second = said(replace(LAKE, letters=(failed(),)))
        assert first == "It is searchable in the live index, in the newest version that is embedded."
        assert second.startswith("There is a newer version, which is not embedded: its photo could not be fetched")

    def test_of_an_invalid_row_says_what_is_invalid(self) -> None:
        letter = Letter.of_refused(Refused("m1", "it has no title", "{}"), FIRST, NOW)
        [sentence] = said(InLake(ENCODER, 5, letters=(letter,)), ABSENT)
        assert f"its row in window {FIRST} is invalid (it has no title): correct it" in sentence


class TestAWindowThatWaits:
    SOURCE = Source(SECOND, "on_sale", NOW, version=20)

    @pytest.mark.parametrize(
        ("reading", "words"),
        [
            (None, "has landed but is not embedded by small-1"),
            (Reading(SECOND, Progress.WAITING), "has landed but is not embedded by small-1"),
            (Reading(SECOND, Progress.REPLACED), "landed again since it was embedded but is not embedded by small-1"),
            (
                Reading(SECOND, Progress.RUNNING, "one", NOW),
                "has landed, and attempt one has been embedding it by small-1 since 2026-11-05 00:00:00",
            ),
        ],
        ids=["unknown to the ledger", "waiting", "replaced", "running"],
    )
    def test_is_why_it_is_not_found(self, reading: Reading | None, words: str) -> None:
        lake = InLake(ENCODER, 5, readings=(reading,) if reading else ())
        [sentence] = said(lake, ABSENT, sources=(self.SOURCE,))
        assert sentence.startswith(f"It is not searchable: its window {SECOND} {words}")
        assert "lens embed" in sentence

    def test_is_why_it_is_found_in_an_older_version(self) -> None:
        assert said(sources=(self.SOURCE,))[1].startswith(
            f"There is a newer version, which is not embedded: its window {SECOND} has landed"
        )

    def test_that_holds_nothing_newer_is_not_mentioned(self) -> None:
        assert len(said(sources=(replace(self.SOURCE, version=10),))) == 1

    def test_that_is_embedded_is_not_mentioned(self) -> None:
        lake = replace(LAKE, readings=(Reading(SECOND, Progress.EMBEDDED),))
        assert len(said(lake, sources=(self.SOURCE,))) == 1

    def test_with_an_invalid_row_says_what_is_invalid(self) -> None:
        [sentence] = said(InLake(ENCODER, 0), ABSENT, sources=(Source(SECOND, problem="it has no title"),))
        assert f"its row in window {SECOND}, not embedded yet, is invalid (it has no title)" in sentence


class TestBesideTheLake:
    @pytest.mark.parametrize(
        ("index", "row", "beside", "words"),
        [
            (LIVE, ROW, Beside.SAME, ""),
            (ABSENT, None, Beside.SAME, "neither has it"),
            (replace(LIVE, version=9, reached=2), ROW, Beside.OLDER, "up to version 2 of 5"),
            (replace(LIVE, version=9), ROW, Beside.OLDER, "left no reason"),
            (replace(LIVE, version=11), ROW, Beside.NEWER, "did not come from this lake"),
            (replace(ABSENT, reached=0), ROW, Beside.MISSING, "first load has not finished"),
            (replace(ABSENT, reached=2), ROW, Beside.MISSING, "its row changed in 3"),
            (replace(ABSENT, forgets_before=NOW + timedelta(1)), SOLD, Beside.MISSING, "long before"),
            (replace(ABSENT, forgets_before=NOW - timedelta(1)), SOLD, Beside.MISSING, "nothing is lost"),
            (LIVE, None, Beside.SURPLUS, "deletes it"),
            (replace(LIVE, status="sold", findable=False), None, Beside.SURPLUS, "so long ago"),
            (replace(ABSENT, refusal=Refusal("m1", 9, "x")), ROW, Beside.MISSING, "left no reason"),
        ],
    )
    def test_a_document_is(self, index: InIndex, row: Row | None, beside: Beside, words: str) -> None:
        found = compare(index, replace(LAKE, row=row))
        assert found.beside is beside
        assert words in str(found)
