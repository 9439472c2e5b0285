"""The operators of a rebuild on a real node: an index names its space from the start, and readers change over in one step."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG
from plugins.operators.search_index import CreateIndexOperator, SwapAliasOperator
from tiny import remove_indexes

from listing_lens.errors import LensError
from listing_lens.search.index import SearchIndex
from listing_lens.settings import load_settings
from models.embedder import EmbedderCard

FILE = Path(__file__).parents[2] / "dags" / "rebuild_index.py"
CARD = EmbedderCard(encoder_source="x", encoder_id="x-1", encoder_dims=16, projection_id="p1", dims=4)


@pytest.fixture
def search_index(elasticsearch_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SearchIndex]:
    """No index yet, behind an alias of this test's own, which the settings name."""
    monkeypatch.setenv("LENS_ELASTICSEARCH_URL", elasticsearch_url)
    monkeypatch.setenv("LENS_ALIAS", f"test-{uuid4().hex[:8]}")
    search_index = SearchIndex.connect(load_settings())
    yield search_index
    remove_indexes(search_index)


def create(build: str, card: EmbedderCard = CARD) -> str:
    """Run the task, which gets the card as another task left it: as a mapping."""
    return CreateIndexOperator(task_id="create_index", card=card.model_dump(), build=build).execute({})


def swap(index: str) -> str | None:
    return SwapAliasOperator(task_id="swap", index=index).execute({})


class TestCreateIndex:
    def test_the_index_is_empty_and_names_its_space(self, search_index: SearchIndex) -> None:
        name = create("20261101t000000")
        assert name == f"{search_index.alias}-{CARD.space}-20261101t000000"
        [mapping] = search_index.client.indices.get_mapping(index=name).values()
        assert mapping["mappings"]["_meta"] == {
            "alias": search_index.alias,
            "card": CARD.model_dump(),
            "space": CARD.space,
            "build": "20261101t000000",
        }
        assert mapping["mappings"]["properties"]["vector"]["dims"] == CARD.dims
        assert search_index.counts(name) == {"searchable": 0, "removed": 0}

    def test_readers_are_not_sent_to_it(self, search_index: SearchIndex) -> None:
        create("b1")
        assert search_index.live() is None

    def test_another_try_takes_the_index_of_the_one_before(self, search_index: SearchIndex) -> None:
        name = create("b1")
        made = search_index.client.indices.get_settings(index=name)
        assert create("b1") == name
        assert search_index.client.indices.get_settings(index=name) == made
        assert [index.name for index in search_index.all()] == [name]

    def test_another_build_or_space_has_an_index_of_its_own(self, search_index: SearchIndex) -> None:
        other = CARD.model_copy(update={"projection_id": "p2"})
        names = {create("b1"), create("b2"), create("b1", other)}
        assert {index.name for index in search_index.all()} == names
        assert len(names) == 3


class TestSwapAlias:
    def test_the_first_index_goes_live(self, search_index: SearchIndex) -> None:
        name = create("b1")
        assert swap(name) is None
        assert search_index.require_live().name == name

    def test_the_alias_moves_in_one_request_and_the_index_before_stays(
        self, search_index: SearchIndex, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before, after = create("b1"), create("b2")
        swap(before)
        requests: list[tuple[str, str]] = []
        perform = type(search_index.client.transport).perform_request

        def note(self: Any, method: str, target: str, **rest: Any) -> Any:
            requests.append((method, target))
            return perform(self, method, target, **rest)

        monkeypatch.setattr(type(search_index.client.transport), "perform_request", note)
        assert swap(after) == before
        assert [target for method, target in requests if method != "GET"] == ["/_aliases"]
        assert search_index.require_live().name == after
        assert {index.name for index in search_index.all()} == {before, after}

    def test_another_try_changes_nothing(self, search_index: SearchIndex) -> None:
        before, after = create("b1"), create("b2")
        swap(before)
        swap(after)
        assert swap(after) is None
        assert search_index.require_live().name == after

    def test_an_index_that_is_not_there_leaves_the_alias(self, search_index: SearchIndex) -> None:
        name = create("b1")
        swap(name)
        with pytest.raises(LensError, match="there is no index"):
            swap(f"{search_index.alias}-gone")
        assert search_index.require_live().name == name


class TestTemplates:
    """What a run of `rebuild_index` knows only while it goes on, reaches the tasks: a field that is no template would not."""

    @pytest.fixture
    def run(self) -> Any:
        """What the templates of a run's tasks see."""
        left = {("resolve_embedder", "card"): CARD.model_dump(), ("create_index", "return_value"): "the-index"}
        return {
            "dag_run": SimpleNamespace(run_after=datetime(2026, 11, 1, tzinfo=UTC)),
            "ti": SimpleNamespace(xcom_pull=lambda task_ids, key, **_: left[task_ids, key]),
        }

    @pytest.fixture
    def dag(self) -> DAG:
        bag = DagBag(dag_folder=str(FILE), bundle_path=FILE.parent, bundle_name="dags-folder")
        return bag.dags["rebuild_index"]

    def test_the_index_is_of_the_run_and_of_its_embedder(self, dag: DAG, run: Any) -> None:
        task: Any = dag.get_task("create_index")
        task.render_template_fields(run)
        assert (task.build, task.card) == ("20261101t000000", CARD.model_dump())

    def test_the_alias_moves_to_the_index_that_was_created(self, dag: DAG, run: Any) -> None:
        task: Any = dag.get_task("swap")
        task.render_template_fields(run)
        assert task.index == "the-index"

    @pytest.mark.parametrize(
        ("operator", "fields"),
        [(CreateIndexOperator, ("card", "build")), (SwapAliasOperator, ("index",))],
        ids=["create", "swap"],
    )
    def test_every_argument_may_be_one(self, operator: type[Any], fields: tuple[str, ...]) -> None:
        assert tuple(operator.template_fields) == fields
