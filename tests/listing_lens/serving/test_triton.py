"""Embedding by a server for models: the vectors are the embedder's, or there are none.

What is held here is held on a real Triton too, where the environment names one (tests/model_server.py); faults are put in
on the small server.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from model_server import ModelServer, RealTriton, SmallServer, result
from numpy.typing import NDArray
from PIL import Image
from small_siglip import save_siglip

from listing_lens.embedding.embedder import Embedder
from listing_lens.embedding.model_repository import Instances, export_version, write_config
from listing_lens.errors import LensError
from listing_lens.serving.kserve import KServe
from listing_lens.serving.limits import UnavailableError
from listing_lens.serving.query_embedder import QueryEmbedder
from listing_lens.serving.service import Service
from listing_lens.serving.triton import Triton, TritonEmbedder
from listing_lens.settings import load_settings
from models.embedder import MODEL, EmbedderCard
from models.encoders.encoder import Encoder
from models.moments import Moments
from models.projection import fit_projection

SIZES = [(64, 64), (200, 80), (37, 90), (300, 300), (8, 8), (64, 65), (500, 31)]
REAL = os.environ.get("TRITON_PYTHON")


def photos(count: int, seed: int = 0) -> list[Image.Image]:
    chance = np.random.default_rng(seed)
    return [
        Image.fromarray(chance.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize(SIZES[n % len(SIZES)])
        for n in range(count)
    ]


@dataclass(frozen=True)
class Exported:
    """A version, its embedder, and a repository with nothing else in it."""

    version: int
    card: EmbedderCard
    embedder: Embedder
    repository: Path

    @classmethod
    def of(cls, version: int, source: Path, dims: int, repository: Path) -> Exported:
        encoder = Encoder.load(str(source))
        projection = fit_projection(Moments.of(encoder.embed(photos(60, seed=1))), dims)
        card = EmbedderCard(
            encoder_source=encoder.source,
            encoder_id=encoder.encoder_id,
            encoder_dims=encoder.dims,
            projection_id=projection.projection_id,
            dims=dims,
        )
        embedder = Embedder(encoder, projection)
        export_version(version, card, embedder, repository, instances=Instances("cpu"))
        return cls(version, card, embedder, repository)

    @property
    def folder(self) -> Path:
        return self.repository / MODEL / str(self.version)

    def least_cosine(self, vectors: NDArray[np.float32], images: list[Image.Image]) -> float:
        return float(np.vecdot(vectors, self.embedder.embed(images)).min())


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, untrained_siglip: Path) -> Exported:
    return Exported.of(3, untrained_siglip, 16, tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Of another encoder, with other sizes of images and vectors."""
    folder = tmp_path_factory.mktemp("second")
    return Exported.of(7, save_siglip(folder / "siglip"), 8, folder / "models")


@pytest.fixture
def both(first: Exported, second: Exported, tmp_path: Path) -> Path:
    """A repository with both versions."""
    both = tmp_path / "both"
    for exported in (first, second):
        shutil.copytree(exported.folder, both / MODEL / str(exported.version))
    write_config(both, Instances("cpu"))
    return both


@pytest.fixture
def small(tmp_path: Path) -> Iterator[SmallServer]:
    server = SmallServer(tmp_path / "served")
    yield server
    server.stop()


def real_server(tmp_path: Path) -> RealTriton:
    if not REAL:
        pytest.skip("TRITON_PYTHON names no environment with nvidia-pytriton: see tests/model_server.py")
    (tmp_path / "triton").mkdir()
    return RealTriton(tmp_path / "triton", Path(REAL))


@pytest.fixture(params=["small server", "Triton"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ModelServer]:
    started: ModelServer = (
        SmallServer(tmp_path / "served") if request.param == "small server" else real_server(tmp_path)
    )
    yield started
    started.stop()


def with_triton(
    server: ModelServer, story: Callable[[Triton], Coroutine[Any, Any, None]], timeout_s: float = 60.0
) -> None:
    """Tell a story of a generator that is closed at its end."""

    async def told() -> None:
        triton = Triton(KServe(server.url), timeout_s, at_once=4)
        try:
            await story(triton)
        finally:
            await triton.close()

    asyncio.run(told())


class TestAnEmbedder:
    def test_gives_the_vectors_of_its_space(
        self, server: ModelServer, both: Path, first: Exported, second: Exported
    ) -> None:
        server.take(both)

        async def story(triton: Triton) -> None:
            for exported in (first, second):
                embedder = await triton.load(exported.card)
                assert isinstance(embedder, TritonEmbedder)
                assert embedder.version == exported.version
                assert embedder.card == exported.card
                assert embedder.image_side == exported.embedder.encoder.image_side
                for count in (1, 2, 7, 8):
                    vectors = await embedder.embed(photos(count))
                    assert vectors.dtype == np.float32
                    assert exported.least_cosine(vectors, photos(count)) >= 0.9999

        with_triton(server, story)

    def test_keeps_batches_that_are_computed_at_once_apart(self, server: ModelServer, first: Exported) -> None:
        server.take(first.repository)

        async def story(triton: Triton) -> None:
            embedder = await triton.load(first.card)
            batches = [photos(1 + n % 3, seed=n) for n in range(12)]
            vectors = await asyncio.gather(*map(embedder.embed, batches))
            for mine, batch in zip(vectors, batches, strict=True):
                assert first.least_cosine(mine, batch) >= 0.9999

        with_triton(server, story)

    def test_that_was_exported_meanwhile_is_loaded_and_the_one_before_goes_on(
        self, server: ModelServer, both: Path, first: Exported, second: Exported
    ) -> None:
        server.take(first.repository)

        async def story(triton: Triton) -> None:
            before = await triton.load(first.card)
            with pytest.raises(
                LensError, match=f"has loaded no listing-embedder of space {second.card.space}: export it"
            ):
                await triton.load(second.card)
            server.take(both)
            after = await triton.load(second.card)
            assert first.least_cosine(await before.embed(photos(2)), photos(2)) >= 0.9999
            assert second.least_cosine(await after.embed(photos(2)), photos(2)) >= 0.9999

        with_triton(server, story)

    def test_is_not_taken_from_an_empty_server(self, server: ModelServer, first: Exported) -> None:
        async def story(triton: Triton) -> None:
            with pytest.raises(
                LensError, match=r"export it with `lens triton export`; the model server at .* failed to load"
            ):
                await triton.load(first.card)

        with_triton(server, story)


class TestAWrongSpace:
    """A graph that computes as well, with the same sizes, but in another space than the config says."""

    @pytest.fixture
    def mixed(self, first: Exported, tmp_path: Path) -> Path:
        mixed = Path(shutil.copytree(first.repository, tmp_path / "mixed"))
        file = mixed / MODEL / str(first.version) / "model.onnx"
        graph = onnx.load(file, load_external_data=False)
        [name] = [constant for constant in graph.graph.initializer if constant.data_type == onnx.TensorProto.STRING]
        name.string_data[:] = [b"another"]
        onnx.save(graph, file)
        return mixed

    def test_is_not_loaded(self, server: ModelServer, mixed: Path, first: Exported) -> None:
        server.take(mixed)

        async def story(triton: Triton) -> None:
            with pytest.raises(
                LensError, match=f"answers in space another, not in {first.card.space}: export the version"
            ):
                await triton.load(first.card)

        with_triton(server, story)

    def test_gives_no_vectors_to_who_loaded_the_right_one_before(
        self, server: ModelServer, mixed: Path, first: Exported
    ) -> None:
        server.take(first.repository)

        async def story(triton: Triton) -> None:
            embedder = await triton.load(first.card)
            assert len(await embedder.embed(photos(1))) == 1
            server.take(mixed)
            await triton.server.load(MODEL)
            with pytest.raises(LensError, match="answers in space another"):
                await embedder.embed(photos(1))

        with_triton(server, story)


class TestAServerThatIsAway:
    def test_is_unavailable_until_it_is_back(self, server: ModelServer, first: Exported) -> None:
        server.take(first.repository)

        async def story(triton: Triton) -> None:
            embedder = await triton.load(first.card)
            await asyncio.to_thread(server.stop)
            for ask in (lambda: embedder.embed(photos(1)), lambda: triton.load(first.card)):
                with pytest.raises(UnavailableError, match=f"the model server at {server.url} cannot be reached"):
                    await ask()
            await asyncio.to_thread(server.start)
            # It comes back with nothing loaded.
            with pytest.raises(LensError, match="refuses .*/infer: Request for unknown model"):
                await embedder.embed(photos(1))
            await triton.load(first.card)
            assert first.least_cosine(await embedder.embed(photos(2)), photos(2)) >= 0.9999

        with_triton(server, story)

    def test_is_not_asked_on_and_on(self, small: SmallServer, first: Exported) -> None:
        small.take(first.repository)

        async def story(triton: Triton) -> None:
            embedder = await triton.load(first.card)
            small.fault = lambda _path: (503, {}, b'{"error": "Exceeds maximum queue size"}')
            for _ in range(triton.server.breaker.failures_to_open):
                with pytest.raises(UnavailableError, match=r"cannot take it now \(Exceeds maximum queue size\)"):
                    await embedder.embed(photos(1))
            asked = len(small.asked)
            with pytest.raises(UnavailableError, match="does not answer"):
                await embedder.embed(photos(1))
            assert len(small.asked) == asked

        with_triton(small, story)

    def test_that_is_too_slow_is_unavailable(self, small: SmallServer, first: Exported) -> None:
        small.take(first.repository)
        answer = threading.Event()

        async def story(triton: Triton) -> None:
            embedder = await triton.load(first.card)
            small.fault = lambda _path: answer.wait() and None
            try:
                with pytest.raises(UnavailableError, match="did not answer within 0.5 s"):
                    await embedder.embed(photos(1))
            finally:
                answer.set()

        with_triton(small, story, timeout_s=0.5)

    def test_that_loads_nothing_it_is_asked_for_says_so(self, small: SmallServer, first: Exported) -> None:
        polls = b'{"error":"explicit model load / unload is not allowed if polling is enabled"}'
        small.fault = lambda path: (503, {}, polls) if path.endswith("/load") else None

        async def story(triton: Triton) -> None:
            with pytest.raises(
                LensError, match="export it with `lens triton export`; .* not allowed if polling is enabled"
            ):
                await triton.load(first.card)

        with_triton(small, story)


class TestAnAnswer:
    @pytest.mark.parametrize(
        ("shape", "value", "said"),
        [
            ((1, 15), 0.25, r"answers with vectors of shape \(1, 15\), .* instead of \(1, 16\)"),
            ((2, 16), 0.25, r"answers with vectors of shape \(2, 16\)"),
            ((1, 16), np.nan, "or such that hold no numbers"),
        ],
        ids=["too short", "too many", "no numbers"],
    )
    def test_of_other_vectors_is_refused(
        self, small: SmallServer, first: Exported, shape: tuple[int, int], value: float, said: str
    ) -> None:
        spaces = np.full((1, 1), first.card.space, object)
        answer = result({"embedding": np.full(shape, value, np.float32), "space": spaces})
        self.require_refusal(small, first, answer, said)

    @pytest.mark.parametrize(
        "answer",
        [
            (200, {}, b""),
            (200, {}, b"<html>"),
            (200, {}, b'{"outputs": []}'),
            (200, {}, b'{"outputs": [{"name": "embedding", "shape": [1, 16], "datatype": "FP32", "data": [1, 2]}]}'),
            (200, {}, b'{"outputs": [{"name": "embedding", "shape": [1], "datatype": "FP64", "data": ["a"]}]}'),
        ],
    )
    def test_that_is_none_is_refused(
        self, small: SmallServer, first: Exported, answer: tuple[int, dict[str, str], bytes]
    ) -> None:
        self.require_refusal(small, first, answer, "answers what is no result of listing-embedder version 3")

    @pytest.mark.parametrize(
        ("space", "said"), [("another", "answers in space another, not in"), ("", "answers in space ")]
    )
    def test_of_another_space_is_refused(self, small: SmallServer, first: Exported, space: str, said: str) -> None:
        vectors = first.embedder.embed(photos(1))
        answer = result({"embedding": vectors, "space": np.full((1, 1), space, object)})
        self.require_refusal(small, first, answer, said)

    @staticmethod
    def require_refusal(
        small: SmallServer, first: Exported, answer: tuple[int, dict[str, str], bytes], said: str
    ) -> None:
        small.take(first.repository)

        async def story(triton: Triton) -> None:
            embedder: QueryEmbedder = await triton.load(first.card)
            small.fault = lambda _path: answer
            with pytest.raises(LensError, match=said):
                await embedder.embed(photos(1))

        with_triton(small, story)


def test_an_encoder_that_has_changed_is_refused_before_anything_is_asked(
    small: SmallServer, first: Exported, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(first.card.encoder_source, tmp_path / Path(first.card.encoder_source).name))
    config = folder / "preprocessor_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"resample": 0}))

    async def story(triton: Triton) -> None:
        with pytest.raises(LensError, match=f"but {first.card.encoder_id} is needed: restore its weights"):
            await triton.load(first.card.model_copy(update={"encoder_source": str(folder)}))
        with pytest.raises(LensError, match="encoder 'pixels:4' has no network"):
            await triton.load(first.card.model_copy(update={"encoder_source": "pixels:4"}))

    with_triton(small, story)
    assert small.asked == []


def test_the_service_asks_the_server_that_the_settings_name() -> None:
    settings = load_settings(
        elasticsearch_url="http://127.0.0.1:1", search_generator="http://127.0.0.1:2/", search_generator_at_once=3
    )
    generator = Service.of(settings).generator
    assert isinstance(generator, Triton)
    assert (generator.server.url, generator.at_once) == ("http://127.0.0.1:2", 3)
