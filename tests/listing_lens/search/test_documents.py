"""Documents are the same whether they are made of rows or of listings, and no bad vector leaves for the index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

import numpy as np
import orjson
import pyarrow as pa
import pytest
from elasticsearch import Elasticsearch
from hypothesis import given
from hypothesis import strategies as st
from tiny import FIRST, listing

from listing_lens.lake.embeddings import Embedded, Item, item_batch, item_schema, with_embedding
from listing_lens.lake.records import Listing, Status
from listing_lens.search.documents import Document, Refusal, document_of, documents_of, properties

_DIMS = 4

_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_moments = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC))  # noqa: DTZ001
_listings = st.builds(
    Listing,
    item_id=_texts,
    title=_texts,
    category=st.lists(_texts, max_size=3).map(tuple),
    price=st.integers(-(2**63), 2**63 - 1),
    image_uri=_texts,
    status=st.sampled_from(Status),
    created_at=_moments,
    updated_at=st.datetimes(datetime(1970, 1, 1), datetime(2111, 12, 31), timezones=st.just(UTC)),  # noqa: DTZ001
    seller_id=st.none() | _texts,
)
_vectors = st.lists(st.floats(-1e3, 1e3, width=32), min_size=_DIMS, max_size=_DIMS).map(
    lambda numbers: _unit(*numbers) if any(numbers) else np.zeros(_DIMS, np.float32)
)


def _unit(*numbers: float) -> np.ndarray:
    vector = np.array(numbers, np.float64)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def _batch(listings: list[Listing], vectors: list[np.ndarray | None]) -> pa.RecordBatch:
    items = [
        Item(made, FIRST, None if vector is None else Embedded(vector, b"photo", "float32"))
        for made, vector in zip(listings, vectors, strict=True)
    ]
    return item_batch(items, item_schema(_DIMS))


def _of_rows(batch: pa.RecordBatch) -> list[Document | Refusal]:
    present, vectors = with_embedding(batch)
    return list(documents_of(batch, vectors, present, _DIMS))


def _written(document: Document | Refusal) -> object:
    """What is comparable of a document: what goes to the index."""
    if isinstance(document, Refusal):
        return document
    source = orjson.dumps(document.source, option=orjson.OPT_SERIALIZE_NUMPY)
    return document.item_id, document.version, source


@given(st.lists(st.tuples(_listings, st.none() | _vectors), max_size=8), st.integers(0, 7))
def test_a_row_and_its_listing_make_the_same_document(
    rows: list[tuple[Listing, np.ndarray | None]], start: int
) -> None:
    batch = _batch([made for made, _ in rows], [vector for _, vector in rows])
    expected = [_written(document_of(made, vector, _DIMS)) for made, vector in rows]
    assert [_written(document) for document in _of_rows(batch)] == expected
    assert [_written(document) for document in _of_rows(batch.slice(start))] == expected[start:]


def test_a_document_says_what_the_listing_says() -> None:
    made = replace(listing("a"), title="カップ", seller_id="s")
    document = document_of(made, _unit(1, 0, 0, 0), _DIMS)
    assert isinstance(document, Document)
    assert (document.item_id, document.version) == ("a", made.version)
    assert orjson.loads(orjson.dumps(document.source, option=orjson.OPT_SERIALIZE_NUMPY)) == {
        "item_id": "a",
        "title": "カップ",
        "category": ["A", "B"],
        "price": 1200,
        "status": "on_sale",
        "image_uri": "a.jpg",
        "created_at": "2026-11-01T00:00:00+00:00",
        "updated_at": "2026-11-01T00:00:00+00:00",
        "vector": [1.0, 0.0, 0.0, 0.0],
    }


@pytest.mark.parametrize("status", [Status.SOLD, Status.DELETED])
def test_what_is_not_searchable_has_no_vector_whatever_was_given(status: Status) -> None:
    made = listing("a", status=status)
    for vector in (None, _unit(1, 0, 0, 0), np.full(_DIMS, np.nan, np.float32)):
        document = document_of(made, vector, _DIMS)
        assert isinstance(document, Document)
        assert "vector" not in document.source


def test_what_is_searchable_needs_a_vector() -> None:
    made = listing("a", status=Status.RESERVED)
    assert document_of(made, None, _DIMS) == Refusal("a", made.version, "it is reserved but has no vector")


@pytest.mark.parametrize(
    ("vector", "reason"),
    [
        ([1, 0, 0], "its vector has 3 dimensions instead of 4"),
        ([np.nan, 0, 0, 1], "its vector has a number that is not finite"),
        ([np.inf, 0, 0, 0], "its vector has a number that is not finite"),
        ([3e38, 3e38, 0, 0], r"its vector has length 4.243e+38 instead of 1"),
        ([0, 0, 0, 0], "its vector has length 0 instead of 1"),
        ([1.001, 0, 0, 0], "its vector has length 1.001 instead of 1"),
    ],
    ids=str,
)
def test_a_bad_vector_is_refused_with_its_reason(vector: list[float], reason: str) -> None:
    made = listing("bad")
    numbers = np.array(vector, np.float32)
    assert document_of(made, numbers, _DIMS) == Refusal("bad", made.version, reason)
    batch = _batch([listing("bad")], [_unit(1, 0, 0, 0)])
    assert list(documents_of(batch, numbers[None], np.array([True]), _DIMS)) == [Refusal("bad", made.version, reason)]


def test_one_bad_vector_leaves_the_others_alone() -> None:
    names = ["a", "sold", "bad", "b"]
    made = [listing(name, status=Status.SOLD if name == "sold" else Status.ON_SALE) for name in names]
    batch = _batch(made, [None if name == "sold" else _unit(1, 1, 0, 0) for name in names])
    vectors = np.array([_unit(1, 0, 0, 0), np.zeros(_DIMS), _unit(0, 1, 0, 0)], np.float32)
    found = list(documents_of(batch, vectors, np.array([True, False, True, True]), _DIMS))
    assert [type(document) for document in found] == [Document, Document, Refusal, Document]
    assert isinstance(found[3], Document)
    assert found[3].source["vector"].tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("count", [0, 2])
def test_there_is_a_vector_for_each_row_that_has_one(count: int) -> None:
    batch = _batch([listing("a")], [_unit(1, 0, 0, 0)])
    with pytest.raises(AssertionError, match="a vector for each row"):
        list(documents_of(batch, np.empty((count, _DIMS), np.float32), np.array([True]), _DIMS))


@pytest.fixture
def index(elasticsearch_url: str) -> Iterator[tuple[Elasticsearch, str]]:
    client, name = Elasticsearch(elasticsearch_url), f"test-documents-{uuid4().hex[:8]}"
    client.indices.create(
        index=name, mappings={"dynamic": "strict", "properties": properties(64, {"type": "int8_hnsw"})}
    )
    yield client, name
    client.indices.delete(index=name)


def test_no_vector_that_passes_is_refused_by_the_index(index: tuple[Elasticsearch, str]) -> None:
    client, name = index
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((400, 64)) * 10.0 ** rng.uniform(-8, 0, (400, 64))
    lengths = rng.uniform(1 - 6e-4, 1 + 6e-4, (400, 1))
    vectors = (directions / np.linalg.norm(directions, axis=1, keepdims=True) * lengths).astype(np.float32)
    made = [document_of(listing(str(n)), vector, 64) for n, vector in enumerate(vectors)]
    sound = [document for document in made if isinstance(document, Document)]
    assert 0 < len(sound) < len(made)
    operations = [
        line
        for document in sound
        for line in ({"index": {}}, {**document.source, "vector": document.source["vector"].tolist()})
    ]
    assert not client.bulk(index=name, operations=operations)["errors"]


def test_the_mapping_has_the_options_it_is_given(index: tuple[Elasticsearch, str]) -> None:
    client, name = index
    vector = client.indices.get_mapping(index=name)[name]["mappings"]["properties"]["vector"]
    assert (vector["dims"], vector["index_options"]["type"]) == (64, "int8_hnsw")
