"""Records: what is written to the lake is what comes out, also from a slice of a batch, an empty one, or a file."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta, timezone

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from listing_lens.lake.records import (
    DEAD_LETTER_SCHEMA,
    LISTING_SCHEMA,
    SESSION_SCHEMA,
    DeadLetter,
    Listing,
    Query,
    Refused,
    Session,
    Status,
    by_version,
    listings_of,
    parse_listings,
    sessions_of,
    to_table,
)
from listing_lens.lake.window import Window

moments = st.integers(0, 4 * 10**15).map(lambda us: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us))
texts = st.text(max_size=12)
words = st.text(min_size=1, max_size=12)
listings = st.builds(
    Listing,
    item_id=texts,
    title=texts,
    category=st.lists(texts, max_size=3).map(tuple),
    price=st.integers(0, 2**63 - 1),
    image_uri=texts,
    status=st.sampled_from(Status),
    created_at=moments,
    updated_at=moments,
    seller_id=st.none() | texts,
    product_id=st.none() | texts,
)
sessions = st.builds(
    lambda pairs, **rest: Session(shown=tuple(p[0] for p in pairs), tapped=tuple(p[1] for p in pairs), **rest),
    pairs=st.lists(st.tuples(texts, st.booleans()), max_size=4),
    session_id=texts,
    searched_at=moments,
    query=st.builds(
        Query,
        st.lists(texts.filter(bool), max_size=3).map(tuple),
        st.none() | texts.filter(bool),
        st.none() | st.floats(0, 1),
    ),
)


def through_a_file(table: pa.Table) -> pa.Table:
    file = io.BytesIO()
    pq.write_table(table, file)
    return pq.read_table(file)


def only_batch(table: pa.Table) -> pa.RecordBatch:
    return pa.RecordBatch.from_struct_array(table.to_struct_array().combine_chunks())


def listing(number: int, status: Status = Status.ON_SALE) -> Listing:
    now = datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)
    return Listing(f"item-{number}", "A coat", ("Fashion", "Coats"), 4200, f"{number}.jpg", status, now, now)


@given(st.lists(listings, min_size=1, max_size=5))
def test_listings_come_back(rows: list[Listing]) -> None:
    table = through_a_file(to_table(rows, LISTING_SCHEMA))
    assert table.schema.equals(LISTING_SCHEMA)
    assert [row for batch in table.to_batches() for row in listings_of(batch)] == rows


def test_listings_of_a_window_written_without_codes_have_none() -> None:
    batch = only_batch(to_table([listing(1)], LISTING_SCHEMA).drop_columns(["seller_id", "product_id"]))
    assert list(listings_of(batch)) == [listing(1)]


def test_the_newest_version_is_the_one_that_was_updated_last() -> None:
    old, new = listing(1), replace(listing(1), updated_at=listing(1).updated_at + timedelta(microseconds=1))
    assert max([new, old], key=by_version) == max([old, new], key=by_version) == new
    # A tie is broken the same way in either order.
    other = replace(new, price=1)
    assert max([new, other], key=by_version) == max([other, new], key=by_version)


@pytest.mark.parametrize(
    ("shown", "tapped", "sound"),
    [
        (("a", "b"), (True, False), True),
        (("a", "b"), (True,), False),
        (("a", "a"), (True, False), False),
        ((), (), False),
    ],
)
def test_a_session_is_sound_when_each_item_was_shown_once(
    shown: tuple[str, ...], tapped: tuple[bool, ...], sound: bool
) -> None:
    assert Session("s", datetime(2026, 1, 1, tzinfo=UTC), Query(("q.jpg",)), shown, tapped).sound is sound


@given(st.lists(sessions, min_size=1, max_size=5))
def test_sessions_come_back(rows: list[Session]) -> None:
    table = through_a_file(to_table(rows, SESSION_SCHEMA))
    assert [row for batch in table.to_batches() for row in sessions_of(batch)] == rows


def test_dead_letters_come_back() -> None:
    letters = [DeadLetter("1", "decode", "empty file"), DeadLetter("2", "decode", "1×1 pixels")]
    rows = through_a_file(to_table(letters, DEAD_LETTER_SCHEMA)).to_pylist()
    assert [DeadLetter(**row) for row in rows] == letters


@pytest.mark.parametrize(
    "schema", [LISTING_SCHEMA, SESSION_SCHEMA, DEAD_LETTER_SCHEMA], ids=["listings", "sessions", "dead letters"]
)
def test_no_rows_are_a_table_too(schema: pa.Schema) -> None:
    table = through_a_file(to_table([], schema))
    assert (len(table), table.schema) == (0, schema)


def test_times_come_back_in_utc_to_the_microsecond() -> None:
    tokyo = datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=9)))
    row = Listing("1", "", (), 1, "", Status.SOLD, tokyo, tokyo)
    (back,) = listings_of(only_batch(to_table([row], LISTING_SCHEMA)))
    assert back.updated_at == tokyo
    assert back.updated_at.utcoffset() == timedelta(0)


@pytest.mark.parametrize("status", Status)
def test_only_what_can_still_be_bought_is_searchable(status: Status) -> None:
    assert listing(1, status).searchable == (status in ("on_sale", "reserved"))


class TestParsing:
    """Rows that anyone may have written: each is a listing, or is named with what is wrong."""

    def parsed(self, *rows: dict[str, object]) -> list[Listing | Refused]:
        schema = pa.schema([field.with_nullable(True) for field in LISTING_SCHEMA])
        batch = pa.RecordBatch.from_pylist([asdict(listing(1)) | row for row in rows], schema=schema)
        return list(parse_listings(batch, Window(datetime(2026, 1, 31, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC))))

    def test_good_rows_are_listings_and_others_do_not_stop_them(self) -> None:
        good, bad, late = self.parsed({}, {"status": "archived"}, {"updated_at": datetime(2026, 1, 1, tzinfo=UTC)})
        assert good == listing(1)
        assert isinstance(bad, Refused)
        assert bad.item_id == "item-1"
        assert json.loads(bad.row)["status"] == "archived"
        assert isinstance(late, Listing)

    @pytest.mark.parametrize("column", [field.name for field in LISTING_SCHEMA if not field.nullable])
    def test_a_row_without_a_value_is_refused(self, column: str) -> None:
        [refused] = self.parsed({column: None})
        assert isinstance(refused, Refused)
        assert refused.reason == f"it has no {column}"

    @given(st.lists(listings, max_size=5))
    def test_what_is_no_listing_has_a_reason(self, rows: list[Listing]) -> None:
        found = self.parsed(*map(asdict, rows))
        assert len(found) == len(rows)
        for row, parsed in zip(rows, found, strict=True):
            assert parsed == row if isinstance(parsed, Listing) else parsed.reason
