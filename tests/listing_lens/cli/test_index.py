"""`lens index` on real servers: the alias moves to what was verified, and back; what failed is gone on with, or removed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tiny import SECOND, counts_of, items_of, listing, put_items

from listing_lens import registration
from listing_lens.lake.embeddings import Embeddings
from listing_lens.registry import connect_registry
from listing_lens.search.builds import Builds, State
from listing_lens.search.index import SearchIndex
from listing_lens.search.loads import Loads
from listing_lens.search.verification import Verification
from listing_lens.settings import Settings, load_settings

if TYPE_CHECKING:
    from tests.listing_lens.cli.conftest import Lens, Marketplace, Refusal

_WHOLE = {"searchable": 37, "removed": 2}


def test_is_listed_by_its_whole_name_with_its_state(lens: Lens, marketplace: Marketplace) -> None:
    result = lens("index", "list")
    cells = [line.split("│") for line in result.stdout.splitlines() if line.startswith("│")]
    names = "".join(cell[1].strip() for cell in cells)
    assert all(index.name in names for index in marketplace.search_index.all())
    assert [cell[2].strip() for cell in cells].count("live") == 1


def test_shows_the_record_of_the_live_one(lens: Lens, marketplace: Marketplace) -> None:
    live = marketplace.search_index.require_live()
    result = lens("index", "show")
    assert result.exit_code == 0, result.output
    for said in (live.name, live.card.space, "39 of 39 rows", "reconciled", "left out", "0 documents that the index"):
        assert said in result.stdout
    for step in ("load", "finish_load", "verify", "swap"):
        assert f"│ {step} " in result.stdout


def test_rebuilt_is_a_new_one_that_lacks_nothing_and_rolled_back_is_the_old_one(
    lens: Lens, marketplace: Marketplace
) -> None:
    search_index, builds = marketplace.search_index, Builds(marketplace.search_index)
    before = search_index.require_live()
    registration.promote(marketplace.version, asked=True, settings=marketplace.settings)
    # What its encoder has not embedded is embedded first.
    embeddings = Embeddings(marketplace.lake, marketplace.card.encoder_id)
    rows = items_of(marketplace.lake, embeddings.encoder_id)
    embeddings.items.delete([item for item, row in rows.items() if row["window"] == SECOND.name])
    embeddings.windows.delete([SECOND.name])
    result = lens("index", "rebuild")
    assert result.exit_code == 0, result.output
    assert counts_of(marketplace.lake, embeddings.encoder_id, SECOND)["embedded"] == 20
    live = search_index.require_live()
    assert live.name != before.name
    assert live.card == before.card
    assert f"points to {live.name}, no longer to {before.name}\n" in result.stdout
    assert search_index.counts(live.name) == search_index.counts(before.name) == _WHOLE
    assert [builds.get(index.name).state for index in (live, before)] == [State.LIVE, State.KEPT]

    back = lens("index", "rollback")
    assert back.exit_code == 0, back.output
    assert f"points to {before.name}, no longer to {live.name}\n" in back.stdout
    assert search_index.require_live() == before
    assert [builds.get(index.name).state for index in (live, before)] == [State.KEPT, State.LIVE]
    champion = connect_registry(marketplace.settings).champion()
    assert champion
    assert champion.card == before.card


def test_a_rebuild_that_failed_moves_nothing_and_is_gone_on_with(
    lens: Lens, marketplace: Marketplace, own_index: SearchIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as interrupted:
        interrupted.setattr(
            "listing_lens.search.lifecycle.swap_in", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("killed"))
        )
        with pytest.raises(RuntimeError, match="killed"):
            lens("index", "rebuild", "--model", marketplace.version)
    [failed] = Builds(own_index).all()
    assert (failed.state, failed.ended_because) == (State.FAILED, "killed")
    assert own_index.live() is None
    loads = Loads(own_index, own_index.get(failed.index)).all()

    # The second try begins no second load, but brings in what is embedded after its verification.
    encoder_id = marketplace.card.encoder_id
    row, log = items_of(marketplace.lake, encoder_id)["m011"], registration.log_verification
    cheaper = listing("m011", SECOND, image_uri=row["image_uri"], price=7)

    def log_and_change(verification: Verification, settings: Settings) -> Path:
        put_items(marketplace.lake, encoder_id, [cheaper], [row["embedding"]], SECOND)
        return log(verification, settings)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(registration, "log_verification", log_and_change)
        result = lens("index", "rebuild", "--model", marketplace.version)
    assert result.exit_code == 0, result.output
    assert own_index.require_live().name == failed.index
    assert Loads(own_index, own_index.get(failed.index)).all()[:-1] == loads
    assert own_index.versions(failed.index, ["m011"]) == {"m011": (cheaper.version, cheaper.status)}
    assert [step.name for step in Builds(own_index).get(failed.index).steps][-2:] == ["catch_up_again", "swap"]


def test_is_retired_unless_it_is_live(lens: Lens, refusal: Refusal, marketplace: Marketplace) -> None:
    search_index = marketplace.search_index
    live, other = search_index.require_live(), search_index.create(marketplace.card, "to-be-retired")
    assert refusal("index", "retire", live.name) == (
        f"build {live.name} is live: roll back or rebuild before you retire it"
    )
    retired = lens("index", "retire", other.name)
    assert retired.exit_code == 0, retired.output
    names = {index.name for index in search_index.all()}
    assert live.name in names
    assert other.name not in names
    assert Builds(search_index).get(other.name).state is State.RETIRED
    assert refusal("index", "retire", "nothing") == "there is no build 'nothing': list them with `lens index list`"


def test_policy_removes_what_failed_and_keeps_the_last(
    lens: Lens, marketplace: Marketplace, own_index: SearchIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds = Builds(own_index)
    assert "nothing is removed" in lens("index", "retire").stdout
    failed = builds.begin(marketplace.card, owner="one", because="a test")
    builds.give_up(failed.index, "a test")
    assert f"index {failed.index} is removed" in lens("index", "retire").stdout
    assert not own_index.exists(failed.index)


def test_verified_by_hand_says_so_and_mends_what_it_can(lens: Lens, marketplace: Marketplace) -> None:
    live = marketplace.search_index.require_live()
    client = marketplace.search_index.client
    # Elasticsearch remembers for a minute that it was deleted, and takes nothing older meanwhile.
    client.indices.put_settings(index=live.name, settings={"index.gc_deletes": "0s"})
    client.delete(index=live.name, id="m010", refresh=True)
    mended = lens("index", "verify", "--repair")
    assert mended.exit_code == 0, mended.output
    assert "page: " in mended.stdout
    assert marketplace.search_index.counts(live.name) == _WHOLE


class TestRefusals:
    def test_of_a_second_build(self, refusal: Refusal, marketplace: Marketplace, own_index: SearchIndex) -> None:
        held = Builds(own_index).begin(marketplace.card, owner="another", because="a test")
        said = refusal("index", "rebuild", "--model", marketplace.version)
        assert said.startswith(f"index {held.index} is being built by another, who was last heard of ")
        assert refusal("index", "retire", held.index) == (
            f"build {held.index} is in the hands of another: wait for it to end"
        )

    def test_of_a_check_or_a_fence_that_there_is_not(
        self, refusal: Refusal, marketplace: Marketplace, own_index: SearchIndex
    ) -> None:
        arguments = ("index", "rebuild", "--model", marketplace.version)
        assert "there is no check 'everything' to force: the checks are mapping" in refusal(
            *arguments, "--force-check", "everything"
        )
        assert "'everything' cannot be forced: of a swap, live and champion can" in refusal(
            *arguments, "--force-swap", "everything"
        )

    def test_of_a_rollback_to_nothing(self, refusal: Refusal, marketplace: Marketplace, own_index: SearchIndex) -> None:
        assert refusal("index", "rollback") == f"no index of alias {own_index.alias!r} is kept: rebuild instead"

    def test_of_a_verification_of_nothing(
        self, refusal: Refusal, marketplace: Marketplace, own_index: SearchIndex
    ) -> None:
        assert "points to no index yet" in refusal("index", "verify")
        assert load_settings().alias == own_index.alias
