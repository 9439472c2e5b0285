"""Encoders by their sources, on a real MLflow and a real Elasticsearch: what an address means, and which are in use."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from google.cloud.storage import Bucket
from tiny import FIRST, NOW, SECOND, land, listing, remove_indexes

from listing_lens.embedding.sources import (
    EncodersInUse,
    encoders_in_use,
    landed_identities,
    publish_encoder,
    resolve_encoder,
    windows_not_embedded,
)
from listing_lens.errors import LensError
from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.ledger import Completed, Ledger, input_of
from listing_lens.lake.window import Window
from listing_lens.lake.windows import Lake
from listing_lens.search.builds import Builds
from listing_lens.search.index import SearchIndex
from listing_lens.settings import Settings, load_settings
from models.embedder import CHAMPION, ENCODER_MODEL, EmbedderCard
from models.encoders.encoder import Encoder
from models.encoders.files import encoder_id, identify
from models.encoders.small_siglip import save_untrained_siglip
from models.registry import Registry

THIRD = Window(SECOND.end, SECOND.end + timedelta(days=1))


@pytest.fixture(scope="module")
def other_siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained_siglip(tmp_path_factory.mktemp("encoders") / "other-siglip", seed=1)


@pytest.fixture
def registered(mlflow_url: str, untrained_siglip: Path) -> int:
    """A version of listing-encoder, the candidate."""
    registry = Registry.connect(mlflow_url)
    known = identify(str(untrained_siglip))
    run_id = registry.start_finetuning("training", {}, key=uuid4().hex)
    return registry.register_encoder(
        run_id,
        untrained_siglip,
        encoder_id=known,
        source=str(untrained_siglip),
        parent_id="parent-12345678",
        parent_source="google/parent",
        pairs_fingerprint="0123456789abcdef",
        description="better than its parent",
    )


@pytest.fixture
def search_index(elasticsearch_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SearchIndex]:
    """No index yet, behind an alias of this test's own."""
    monkeypatch.setenv("LENS_ELASTICSEARCH_URL", elasticsearch_url)
    monkeypatch.setenv("LENS_ALIAS", f"test-{uuid4().hex[:8]}")
    search_index = SearchIndex.connect(load_settings())
    yield search_index
    remove_indexes(search_index)


def card(folder: Path, projection_id: str = "00000001") -> EmbedderCard:
    return EmbedderCard(
        encoder_source=str(folder),
        encoder_id=encoder_id(str(folder), folder),
        encoder_dims=192,
        projection_id=projection_id,
        dims=8,
    )


def settings_with(mlflow_url: str, **overrides: object) -> Settings:
    return load_settings(mlflow_url=mlflow_url, **overrides)


class TestResolve:
    def test_versions_and_aliases_are_looked_up(self, mlflow_url: str, registered: int, untrained_siglip: Path) -> None:
        settings = settings_with(mlflow_url)
        for source in (f"models:/listing-encoder/{registered}", "models:/listing-encoder@candidate"):
            assert resolve_encoder(source, settings) == str(untrained_siglip)

    def test_nothing_is_lens_encoder(self, mlflow_url: str, registered: int, untrained_siglip: Path) -> None:
        settings = settings_with(mlflow_url, encoder="models:/listing-encoder@candidate")
        assert resolve_encoder(None, settings) == resolve_encoder("", settings) == str(untrained_siglip)

    @pytest.mark.parametrize("source", ["google/siglip@a1b2", "gs://bucket/encoders/small-12345678", "pixels:16"])
    def test_other_sources_are_what_they_are(self, source: str) -> None:
        # MLflow is not even asked for.
        assert resolve_encoder(source, load_settings(mlflow_url="")) == source

    def test_a_folder_is_absolute(self, untrained_siglip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(untrained_siglip.parent)
        assert resolve_encoder(untrained_siglip.name, load_settings()) == str(untrained_siglip)

    @pytest.mark.parametrize(
        "source", ["models:/listing-embedder@champion", "models:/listing-encoder", "models:/listing-encoder/x/3"]
    )
    def test_an_address_of_something_else_is_refused(self, source: str) -> None:
        with pytest.raises(LensError, match="models:/listing-encoder@champion or models:/listing-encoder/3"):
            resolve_encoder(source, load_settings())

    def test_without_mlflow_says_what_to_set(self) -> None:
        with pytest.raises(LensError, match="models:/listing-encoder/3.*LENS_MLFLOW_URL is not set"):
            resolve_encoder("models:/listing-encoder/3", load_settings(mlflow_url=""))


@pytest.mark.usefixtures("search_index")
class TestInUse:
    def test_without_an_index_is_lens_encoder(self, untrained_siglip: Path) -> None:
        found = encoders_in_use(load_settings(encoder=str(untrained_siglip)))
        assert found == EncodersInUse(str(untrained_siglip), ())

    def test_the_live_index_s_is_required_and_those_of_the_others_and_lens_encoder_are_not(
        self, search_index: SearchIndex, untrained_siglip: Path, other_siglip: Path
    ) -> None:
        search_index.create(card(untrained_siglip), "kept")
        live = search_index.create(card(other_siglip, "00000002"), "live")
        settings = load_settings(encoder="pixels:4")
        # Before the first swap it is LENS_ENCODER that must embed what lands.
        assert encoders_in_use(settings).required == "pixels:4"
        search_index.swap(live.name)
        assert encoders_in_use(settings) == EncodersInUse(str(other_siglip), (str(untrained_siglip), "pixels:4"))

    def test_those_of_builds_that_failed_are_not_in_use(
        self, search_index: SearchIndex, untrained_siglip: Path, other_siglip: Path
    ) -> None:
        builds = Builds(search_index)
        build = builds.begin(card(other_siglip), owner="one", because="a test")
        settings = load_settings(encoder=str(untrained_siglip))
        assert encoders_in_use(settings).all == (str(untrained_siglip), str(other_siglip))
        builds.give_up(build.index, "a test")
        assert encoders_in_use(settings).all == (str(untrained_siglip),)

    def test_an_encoder_is_one_wherever_it_lies(
        self, search_index: SearchIndex, untrained_siglip: Path, tmp_path: Path
    ) -> None:
        copy = shutil.copytree(untrained_siglip, tmp_path / untrained_siglip.name)
        search_index.create(card(untrained_siglip), "live")
        assert encoders_in_use(load_settings(encoder=str(copy))).all == (str(untrained_siglip),)

    def test_a_folder_whose_weights_changed_is_named_once(
        self, search_index: SearchIndex, untrained_siglip: Path, tmp_path: Path
    ) -> None:
        folder = Path(shutil.copytree(untrained_siglip, tmp_path / "encoder"))
        search_index.create(card(folder), "live")
        save_untrained_siglip(folder, seed=2)
        assert encoders_in_use(load_settings(encoder=str(folder))).all == (str(folder),)

    def test_an_alias_that_is_not_set_yet_is_named_and_keeps_nothing_from_the_live_index(
        self,
        search_index: SearchIndex,
        mlflow_url: str,
        registered: int,
        untrained_siglip: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        registry = Registry.connect(mlflow_url)
        if registry.has(CHAMPION, ENCODER_MODEL):
            registry.client.delete_registered_model_alias(ENCODER_MODEL, CHAMPION)
        index = search_index.create(card(untrained_siglip), "live")
        source = "models:/listing-encoder@champion"
        missing = f"{source}' cannot be found: MLflow's listing-encoder has no .* 'champion'"
        with pytest.raises(LensError, match=missing):
            encoders_in_use(settings_with(mlflow_url, encoder=source))
        search_index.swap(index.name)
        assert encoders_in_use(settings_with(mlflow_url, encoder=source)).all == (str(untrained_siglip),)
        assert re.search(missing, caplog.text)
        registry.promote_encoder(registered, by="a test", reason="a test", now=datetime.now(UTC))
        assert encoders_in_use(settings_with(mlflow_url, encoder=source)).all == (str(untrained_siglip),)
        registry.client.delete_registered_model_alias(ENCODER_MODEL, CHAMPION)


class TestPublish:
    @pytest.fixture(params=["folder", "gs"])
    def lake(self, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
        if request.param == "folder":
            return Lake(str(tmp_path / "lake"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "models"))
        bucket: Bucket = request.getfixturevalue("bucket")
        return Lake(f"gs://{bucket.name}/some/lake")

    def test_is_the_same_encoder_in_the_lake(self, lake: Lake, untrained_siglip: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(untrained_siglip, tmp_path / "best"))
        for name in ("spiece.model", "tokenizer.json", "optimizer.pt", "train.log"):
            (folder / name).write_text("x")
        source = publish_encoder(lake, folder, name="listing-siglip")
        known = encoder_id("listing-siglip", untrained_siglip)
        assert source == f"{lake.root}/encoders/{known}"
        encoder = Encoder.load(source)
        assert (encoder.encoder_id, encoder.source) == (known, source)
        assert lake.exists(f"{source}/spiece.model")
        assert lake.exists(f"{source}/tokenizer.json")
        assert not lake.exists(f"{source}/optimizer.pt")
        assert not lake.exists(f"{source}/train.log")

    def test_what_was_cut_off_is_finished_and_what_is_there_is_left(
        self, lake: Lake, untrained_siglip: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write = Lake.write_bytes

        def dying(self: Lake, path: str, data: bytes) -> None:
            if path.endswith(".safetensors"):
                raise KeyboardInterrupt
            write(self, path, data)

        with monkeypatch.context() as killed:
            killed.setattr(Lake, "write_bytes", dying)
            with pytest.raises(KeyboardInterrupt):
                publish_encoder(lake, untrained_siglip)
        source = publish_encoder(lake, untrained_siglip)
        assert identify(source) == identify(str(untrained_siglip))
        with monkeypatch.context() as watched:
            watched.setattr(Lake, "write_bytes", dying)
            assert publish_encoder(lake, untrained_siglip) == source

    def test_a_folder_without_weights_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(LensError, match="no safetensors weights"):
            publish_encoder(Lake(str(tmp_path / "lake")), tmp_path)


class TestWindowsNotEmbedded:
    ENCODER = "small-12345678"

    def embed(self, lake: Lake, part: Window, encoder: str = ENCODER) -> None:
        """Say in the ledger what a run says that has read all that landed of a window."""
        read = {window: name for window, name in landed_identities(lake).items() if window.overlaps(part)}
        ledger = Ledger(Embeddings(lake, encoder))
        ledger.begin([part], "attempt", NOW)
        inputs = tuple(input_of(window, name) for window, name in read.items())
        ledger.complete({part: Completed(inputs, {})}, "attempt", {}, NOW)

    @pytest.fixture
    def lake(self, tmp_path: Path) -> Lake:
        """Three days of listings."""
        lake = Lake(str(tmp_path / "lake"))
        for window in (FIRST, SECOND, THIRD):
            land(lake, window, [listing("a", window)])
        return lake

    def test_are_those_that_no_window_covers_wholly(self, lake: Lake) -> None:
        for part in (*FIRST.split(timedelta(hours=6)), next(SECOND.split(timedelta(hours=6)))):
            self.embed(lake, part)
        self.embed(lake, THIRD, "another-12345678")
        assert windows_not_embedded(lake, self.ENCODER) == [SECOND, THIRD]
        assert windows_not_embedded(lake, self.ENCODER, SECOND) == [SECOND]

    def test_of_a_part_look_at_that_part(self, lake: Lake) -> None:
        quarters = list(SECOND.split(timedelta(hours=6)))
        self.embed(lake, quarters[1])
        assert [windows_not_embedded(lake, self.ENCODER, part) for part in quarters] == [
            [SECOND],
            [],
            [SECOND],
            [SECOND],
        ]

    def test_are_those_that_landed_again(self, lake: Lake) -> None:
        for window in (FIRST, SECOND, THIRD):
            self.embed(lake, window)
        assert windows_not_embedded(lake, self.ENCODER) == []
        land(lake, SECOND, [listing("a", SECOND)])
        assert windows_not_embedded(lake, self.ENCODER) == [SECOND]
        self.embed(lake, SECOND)
        assert windows_not_embedded(lake, self.ENCODER) == []

    def test_are_those_of_runs_that_did_not_come_to_their_end(self, lake: Lake) -> None:
        Ledger(Embeddings(lake, self.ENCODER)).begin([FIRST], "attempt", NOW)
        assert windows_not_embedded(lake, self.ENCODER, FIRST) == [FIRST]
        # One that began over what is embedded takes nothing away.
        self.embed(lake, SECOND)
        Ledger(Embeddings(lake, self.ENCODER)).begin([SECOND], "a later attempt", NOW)
        assert windows_not_embedded(lake, self.ENCODER, SECOND) == []

    def test_of_no_listings_are_none(self, tmp_path: Path) -> None:
        assert windows_not_embedded(Lake(str(tmp_path / "lake")), self.ENCODER) == []
