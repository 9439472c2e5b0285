"""An encoder's table: what is written comes back to the bit, in either type, and what is no embedding never gets in."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tiny import FIRST, SECOND, listing

from listing_lens.errors import LensError
from listing_lens.lake.embeddings import (
    NEWER,
    Embedded,
    EmbeddingDtype,
    Embeddings,
    Item,
    embedded_within,
    embedding_matrix,
    every_encoder,
    item_batch,
    item_schema,
    rows_of,
    with_embedding,
)
from listing_lens.lake.records import Listing, Status, listings_of
from listing_lens.lake.staging import StagedFile, read_staged
from listing_lens.lake.tables import places_of
from listing_lens.lake.window import Window
from listing_lens.lake.windows import Lake

DIMS = 6
ENCODER = "small-12345678"


def item(item_id: str, seed: int | None = None, window: Window = FIRST, **changes: object) -> Item:
    """An item with a random embedding; sold, and without one, when there is no seed."""
    if seed is None:
        return Item(listing(item_id, window, status=Status.SOLD, **changes), window, None)
    embedding = np.random.default_rng(seed).standard_normal(DIMS).astype(np.float32)
    return Item(listing(item_id, window, **changes), window, Embedded(embedding, bytes(16), "float32"))


def write(embeddings: Embeddings, items: list[Item], dtype: EmbeddingDtype = "float32") -> int:
    schema = embeddings.schema(DIMS, dtype)
    return embeddings.items.merge(schema, [item_batch(items, schema)], newer=NEWER).version


@pytest.fixture
def embeddings(tmp_path: Path) -> Embeddings:
    return Embeddings(Lake(str(tmp_path)), ENCODER)


class TestRows:
    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    def test_come_back_as_they_were(self, embeddings: Embeddings, dtype: EmbeddingDtype) -> None:
        items = [item("a", 1, seller_id="s"), item("b"), item("c", 2, category=("Ü", "✓", ""))]
        write(embeddings, items, dtype)
        batch = embeddings.items.open().to_table().combine_chunks().to_batches()[0]
        assert sorted(listings_of(batch), key=lambda found: found.item_id) == [made.listing for made in items]
        for row in batch.to_pylist():
            made = {made.listing.item_id: made for made in items}[row["item_id"]]
            assert (row["version"], row["window"]) == (made.listing.version, FIRST.name)
            if made.embedded is None:
                assert (row["embedding"], row["photo"], row["backend"]) == (None, None, None)
            else:
                assert row["embedding"] == made.embedded.embedding.astype(dtype).tolist()
                assert (row["photo"], row["backend"]) == (bytes(16), "float32")

    @pytest.mark.parametrize(
        "embedding",
        [
            pytest.param(np.array([1, 0, 0, 0, 0, np.nan], np.float32), id="not a number"),
            pytest.param(np.array([1, 0, 0, 0, 0, np.inf], np.float32), id="infinite"),
            pytest.param(np.ones(DIMS + 1, np.float32), id="of other dimensions"),
        ],
    )
    def test_of_something_else_than_an_embedding_are_refused(self, embedding: np.ndarray) -> None:
        bad = Item(listing("bad"), FIRST, Embedded(embedding, bytes(16), "float32"))
        with pytest.raises(LensError, match="the embedding of item 'bad' is not 6 finite numbers"):
            item_batch([item("a", 1), bad], item_schema(DIMS))

    def test_without_any_have_their_columns(self) -> None:
        assert item_batch([], item_schema(DIMS)).schema == item_schema(DIMS)

    @given(st.permutations([item("a", 1), item("a"), item("a", 2, price=1), item("a", 3, minute=9)]))
    def test_of_one_item_leave_the_same_one_in_whatever_order(
        self, tmp_path_factory: pytest.TempPathFactory, versions: list[Item]
    ) -> None:
        embeddings = Embeddings(Lake(str(tmp_path_factory.mktemp("lake"))), ENCODER)
        for version in versions:
            write(embeddings, [version])
        [row] = embeddings.items.rows()
        assert row["version"] == max(version.listing.version for version in versions)
        assert row["updated_at"] == listing("a", minute=9).updated_at

    def test_of_one_time_are_decided_for_what_takes_the_listing_off_sale(self, embeddings: Embeddings) -> None:
        for versions in ([item("a", 1), item("a")], [item("b"), item("b", 1)]):
            for version in versions:
                write(embeddings, [version])
        assert [row["status"] for row in embeddings.items.rows()] == ["sold", "sold"]


class TestMatrices:
    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    @given(values=arrays(np.float32, st.tuples(st.integers(0, 9), st.just(DIMS)), elements=st.floats(-1, 1, width=16)))
    def test_are_float32_whatever_is_stored(self, dtype: EmbeddingDtype, values: np.ndarray) -> None:
        items = [Item(listing(f"{n}"), FIRST, Embedded(row, bytes(16), "float32")) for n, row in enumerate(values)]
        found = embedding_matrix(item_batch(items, item_schema(DIMS, dtype)))
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, values)

    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    def test_of_a_slice_are_the_slices(self, dtype: EmbeddingDtype) -> None:
        batch = item_batch([item(f"{n}", n) for n in range(9)], item_schema(DIMS, dtype))
        np.testing.assert_array_equal(embedding_matrix(batch.slice(3, 4)), embedding_matrix(batch)[3:7])

    def test_of_rows_without_an_embedding_are_refused(self) -> None:
        with pytest.raises(LensError, match="leave out those that are sold or deleted"):
            embedding_matrix(item_batch([item("a", 1), item("b")], item_schema(DIMS)))

    @given(st.lists(st.booleans(), max_size=8))
    def test_leave_out_rows_without_one(self, there: list[bool]) -> None:
        items = [item(f"{n}", n if present else None) for n, present in enumerate(there)]
        present, found = with_embedding(item_batch(items, item_schema(DIMS)))
        assert present.tolist() == there
        expected = [made.embedded.embedding for made in items if made.embedded]
        np.testing.assert_array_equal(found, np.array(expected, np.float32).reshape(-1, DIMS))


class TestTable:
    def test_that_is_not_there_says_what_to_do(self, embeddings: Embeddings) -> None:
        with pytest.raises(LensError, match="holds no embeddings of small-12345678 yet: run `lens embed` first"):
            embeddings.require()

    def test_keeps_the_type_that_it_was_made_with(self, embeddings: Embeddings) -> None:
        write(embeddings, [item("a", 1)], "float16")
        assert embeddings.schema(DIMS, "float32") == item_schema(DIMS, "float16")
        assert embeddings.dims() == DIMS

    def test_of_other_dimensions_is_refused(self, embeddings: Embeddings) -> None:
        write(embeddings, [item("a", 1)])
        with pytest.raises(LensError, match="holds embeddings of 6 dimensions, not of 7"):
            embeddings.schema(DIMS + 1, "float32")

    def test_counts_items_of_a_time(self, embeddings: Embeddings) -> None:
        version = write(embeddings, [item("a", 1), item("b"), item("c", 2, SECOND)])
        assert embeddings.count(version) == 3
        assert embeddings.count(version, embedded_within(None)) == 2
        assert embeddings.count(version, embedded_within(FIRST)) == 1
        assert embeddings.count(version, embedded_within(SECOND)) == 1

    def test_times_are_compared_at_the_bounds(self, embeddings: Embeddings) -> None:
        at = {
            name: listing(name, FIRST, updated_at=moment)
            for name, moment in zip("ab", (FIRST.start, FIRST.end), strict=True)
        }
        made = [Item(found, FIRST, item("x", 1).embedded) for found in at.values()]
        version = write(embeddings, made)
        found = embeddings.items.open(version).to_table(["item_id"], filter=embedded_within(FIRST))
        assert found["item_id"].to_pylist() == ["a"]

    def test_rows_of_some_items_are_found_in_each_fragment(self, embeddings: Embeddings) -> None:
        write(embeddings, [item(f"m{n}", n) for n in range(20)])
        version = write(embeddings, [item(f"m{n}", n, minute=5) for n in range(10, 30)])
        wanted = pa.array(["m5", "m15", "m25", "absent"])
        found = [
            row
            for place in places_of(embeddings.items, version)
            for row in rows_of(embeddings.items, place, wanted, ["item_id", "version", "embedding"]).to_pylist()
        ]
        assert {row["item_id"]: row["version"] for row in found} == {
            name: listing(name, minute=minute).version for name, minute in (("m5", 0), ("m15", 5), ("m25", 5))
        }
        assert all(row["embedding"] for row in found)

    def test_every_encoder_is_found(self, tmp_path: Path) -> None:
        lake = Lake(str(tmp_path))
        assert every_encoder(lake) == []
        for name in ("b-1", "a-1"):
            write(Embeddings(lake, name), [item("a", 1)])
        assert [found.encoder_id for found in every_encoder(lake)] == ["a-1", "b-1"]


def test_staged_rows_come_back_also_those_without_an_embedding(tmp_path: Path) -> None:
    lake, schema = Lake(str(tmp_path)), item_schema(DIMS, "float16")
    batches = [item_batch([item("a", 1), item("b")], schema), item_batch([item("c")], schema)]
    files = [StagedFile(lake, f"{tmp_path}/staging/one", schema) for _ in range(2)]
    for file in files:
        for batch in batches:
            file.write(batch)
        file.close()
    assert list(read_staged(lake, [file.path for file in files])) == batches * 2
    assert [batch.schema.names for batch in read_staged(lake, [files[0].path], ["item_id"])] == [["item_id"]] * 2


class TestVersion:
    moments = st.integers(0, 4 * 10**15)

    @staticmethod
    def of(microseconds: int, **changes: object) -> Listing:
        moment = datetime.fromtimestamp(microseconds // 10**6, UTC).replace(microsecond=microseconds % 10**6)
        return listing("a", updated_at=moment, **changes)

    @given(moments, moments)
    def test_rises_with_the_time(self, one: int, two: int) -> None:
        later, earlier = self.of(max(one, two) + 1), self.of(min(one, two), status=Status.DELETED)
        assert later.version > earlier.version

    @given(moments, st.sampled_from([Status.ON_SALE, Status.RESERVED]), st.sampled_from([Status.SOLD, Status.DELETED]))
    def test_of_one_time_is_larger_for_what_is_off_sale(self, moment: int, on: Status, off: Status) -> None:
        assert self.of(moment, status=off).version > self.of(moment, status=on).version

    def test_of_other_content_is_mostly_another(self) -> None:
        versions = {self.of(10**15, price=price).version for price in range(100)}
        assert len(versions) > 80

    def test_fits_what_elasticsearch_takes_until_2112(self) -> None:
        last = listing("a", updated_at=datetime(2112, 1, 1, tzinfo=UTC), status=Status.SOLD)
        assert 0 < last.version < 2**63
        assert listing("a", updated_at=datetime(1970, 1, 1, tzinfo=UTC)).version >= 0

    def test_is_the_same_in_every_process(self) -> None:
        moment = datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)
        known = Listing("item-1", "A coat", ("Fashion", "Coats"), 4200, "1.jpg", Status.ON_SALE, moment, moment)
        assert known.version >> 11 == 1769860800123456
        assert known.version == 1769860800123456 << 11 | known.version & 0x3FF
