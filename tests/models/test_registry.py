"""The registry on a real MLflow server: what is registered must come back, once per space, and promotions must be told.

The registered model has one name for the whole server, so the tests tell their embedders apart by their spaces, and move
aliases of their own accord before they look at them.
"""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient

from models.embedder import CANDIDATE, CHAMPION, ENCODER_MODEL, MODEL, EmbedderCard
from models.errors import LensError
from models.moments import Moments
from models.projection import Projection, fit_projection
from models.registry import RegisteredEmbedder, RegisteredEncoder, Registry

WINDOW = "20260101T000000Z_20260101T010000Z"


@pytest.fixture(scope="module")
def registry(mlflow_url: str) -> Registry:
    return Registry.connect(mlflow_url)


@pytest.fixture(scope="module")
def client(mlflow_url: str) -> MlflowClient:
    return MlflowClient(mlflow_url, mlflow_url)


def embedder(seed: int) -> tuple[EmbedderCard, Projection]:
    rows = np.random.default_rng(seed).standard_normal((60, 6)).astype(np.float32)
    projection = fit_projection(Moments.of(rows), 3)
    card = EmbedderCard(
        encoder_source="/models/small",
        encoder_id="small-12345678",
        encoder_dims=6,
        projection_id=projection.projection_id,
        dims=3,
    )
    return card, projection


def register(registry: Registry, seed: int, within: str | None = WINDOW) -> int:
    card, projection = embedder(seed)
    return registry.register(
        card,
        projection,
        name=f"fit {seed}",
        version=41,
        within=within,
        share=0.5,
        metrics={"recall@10": 0.75, "before/recall@10": 0.5},
        tags={"projection_before": "none"},
        description="a first fit",
        figures={"explained_variance": Figure(), "recall_by_dims": Figure()},
    )


def artefacts(client: MlflowClient, run_id: str, folder: Path) -> dict[str, bytes]:
    root = Path(client.download_artifacts(run_id, "", str(folder)))
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


class TestRegister:
    def test_what_was_registered_comes_back(self, registry: Registry) -> None:
        version = register(registry, 1)
        found = registry.get(str(version))
        assert found == RegisteredEmbedder(version, embedder(1)[0])

    def test_a_space_is_kept_once_and_is_the_candidate_again(self, registry: Registry, client: MlflowClient) -> None:
        first, second = register(registry, 2), register(registry, 3)
        assert first != second
        assert registry.get(CANDIDATE).version == second
        runs = len(client.search_runs([client.get_experiment_by_name("projection fits").experiment_id]))
        assert register(registry, 2) == first
        assert registry.get(CANDIDATE).version == first
        assert len(client.search_runs([client.get_experiment_by_name("projection fits").experiment_id])) == runs

    def test_the_run_that_a_killed_try_left_has_failed(self, registry: Registry, client: MlflowClient) -> None:
        class Killed(BaseException):
            pass

        class Dying(MlflowClient):
            def log_artifacts(self, *_given: object, **_named: object) -> None:
                raise Killed

        dying = Registry(Dying(tracking_uri=client.tracking_uri, registry_uri=client.tracking_uri))
        with pytest.raises(Killed):
            register(dying, 40)
        register(registry, 40)
        experiment = client.get_experiment_by_name("projection fits").experiment_id
        left = client.search_runs([experiment], "attributes.run_name = 'fit 40'", order_by=["start_time ASC"])
        assert sorted(run.info.status for run in left) == ["FAILED", "FINISHED"]

    def test_the_artefacts_are_data_and_come_back_to_the_bit(
        self, registry: Registry, client: MlflowClient, tmp_path: Path
    ) -> None:
        card, projection = embedder(4)
        found = client.get_model_version(MODEL, str(register(registry, 4)))
        files = artefacts(client, found.run_id, tmp_path)
        assert set(files) == {
            "embedder/card.json",
            "embedder/projection.json",
            "embedder/projection.safetensors",
            "explained_variance.png",
            "recall_by_dims.png",
        }
        # The two ways in which a pickle begins: as such, and in the archive that torch and NumPy write.
        assert not [name for name, data in files.items() if data[:1] == b"\x80" or data[:2] == b"PK"]
        loaded = Projection.load(files["embedder/projection.safetensors"], files["embedder/projection.json"])
        assert loaded.projection_id == projection.projection_id
        assert EmbedderCard.model_validate_json(files["embedder/card.json"]) == card

    def test_the_run_of_a_fit_on_all_items_says_so(self, registry: Registry, client: MlflowClient) -> None:
        version = register(registry, 41, within=None)
        assert client.get_run(client.get_model_version(MODEL, str(version)).run_id).data.params["within"] == "all"

    def test_the_run_says_what_it_was_fitted_on(self, registry: Registry, client: MlflowClient) -> None:
        card, projection = embedder(5)
        run = client.get_run(client.get_model_version(MODEL, str(register(registry, 5))).run_id)
        assert run.info.status == "FINISHED"
        assert run.data.params["space"] == card.space
        assert (run.data.params["table_version"], run.data.params["within"]) == ("41", WINDOW)
        assert (run.data.params["share"], run.data.params["whitened"]) == ("0.5", "False")
        assert (run.data.metrics["recall_at_10"], run.data.metrics["before/recall_at_10"]) == (0.75, 0.5)
        assert run.data.metrics["rows"] == 60
        assert run.data.metrics["explained_variance"] == pytest.approx(projection.explained_variance_ratio.sum())


def train(registry: Registry, folder: Path, encoder_id: str) -> tuple[str, int]:
    """Register an encoder as a training leaves it. Returns the run's id and the version."""
    (folder / "model.safetensors").write_bytes(encoder_id.encode())
    for name in ("config.json", "preprocessor_config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    (folder / "optimizer.pt").write_bytes(b"PK")
    run_id = registry.start_finetuning("a training", {}, key=encoder_id)
    return run_id, register_trained(registry, folder, run_id, encoder_id)


def register_trained(registry: Registry, folder: Path, run_id: str, encoder_id: str) -> int:
    return registry.register_encoder(
        run_id,
        folder,
        encoder_id=encoder_id,
        source=f"gs://bucket/lake/encoders/{encoder_id}",
        parent_id="small-12345678",
        parent_source="google/small@a1b2",
        pairs_fingerprint="0123456789abcdef",
        description="better than its parent",
    )


class TestEncoders:
    def test_what_was_registered_comes_back_and_is_the_candidate(self, registry: Registry, tmp_path: Path) -> None:
        _, version = train(registry, tmp_path, "trained-00000001")
        assert (
            registry.get_encoder(str(version))
            == registry.get_encoder(CANDIDATE)
            == RegisteredEncoder(
                version=version,
                encoder_id="trained-00000001",
                source="gs://bucket/lake/encoders/trained-00000001",
                parent_id="small-12345678",
                parent_source="google/small@a1b2",
                pairs_fingerprint="0123456789abcdef",
            )
        )

    def test_its_files_lie_in_its_run(self, registry: Registry, client: MlflowClient, tmp_path: Path) -> None:
        folder, downloaded = tmp_path / "trained", tmp_path / "downloaded"
        folder.mkdir()
        downloaded.mkdir()
        run_id, version = train(registry, folder, "trained-00000002")
        assert client.get_model_version(ENCODER_MODEL, str(version)).run_id == run_id
        files = artefacts(client, run_id, downloaded)
        names = ("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json")
        assert set(files) == {f"encoder/{name}" for name in names}
        assert files["encoder/model.safetensors"] == b"trained-00000002"

    def test_the_same_one_is_kept_once_and_is_the_candidate_again(self, registry: Registry, tmp_path: Path) -> None:
        run_id, first = train(registry, tmp_path, "trained-00000003")
        _, second = train(registry, tmp_path, "trained-00000004")
        assert first != second
        assert registry.get_encoder(CANDIDATE).version == second
        assert register_trained(registry, tmp_path, run_id, "trained-00000003") == first
        assert registry.get_encoder(CANDIDATE).version == first

    def test_a_promotion_leaves_a_record_and_the_embedders_alone(
        self, registry: Registry, client: MlflowClient, tmp_path: Path
    ) -> None:
        registry.promote(register(registry, 11), by="a test", reason="a person said so", now=datetime.now(UTC))
        embedder_before = registry.get(CHAMPION)
        old, new = (train(registry, tmp_path, f"trained-0000000{n}")[1] for n in (5, 6))
        for version, reason in ((old, "the first"), (new, "better nDCG")):
            registry.promote_encoder(version, by="a test", reason=reason, now=datetime(2026, 1, 31, 12, tzinfo=UTC))
        assert registry.get_encoder(CHAMPION).version == new
        tags = client.get_model_version(ENCODER_MODEL, str(new)).tags
        assert (tags["promoted_because"], tags["promoted_over"]) == ("better nDCG", str(old))
        assert tags["promoted_at"] == "2026-01-31T12:00:00+00:00"
        [move] = registry.moves(new, ENCODER_MODEL)
        assert (move.by, move.because, move.over, move.metrics) == ("a test", "better nDCG", old, {})
        assert registry.get(CHAMPION) == embedder_before

    @pytest.mark.parametrize("name", ["no-such-alias", "4294967", ""])
    def test_an_unknown_name_is_one_sentence_with_the_remedy(self, registry: Registry, name: str) -> None:
        with pytest.raises(LensError, match="no version or alias .*DAG finetune_encoder") as refusal:
            registry.get_encoder(name)
        assert repr(name) in str(refusal.value)
        assert "\n" not in str(refusal.value)

    def test_a_version_that_something_else_registered_is_named(
        self, registry: Registry, client: MlflowClient, tmp_path: Path
    ) -> None:
        run_id, _ = train(registry, tmp_path, "trained-00000007")
        foreign = client.create_model_version(
            ENCODER_MODEL, source=f"runs:/{run_id}/encoder", run_id=run_id, await_creation_for=0
        ).version
        with pytest.raises(LensError, match=f"version {foreign} of listing-encoder lacks the tag 'encoder_id'"):
            registry.get_encoder(str(foreign))


class TestFinetuning:
    def test_is_logged_as_it_goes(self, registry: Registry, client: MlflowClient, tmp_path: Path) -> None:
        run_id = registry.start_finetuning("monthly", {"learning_rate": 5e-5, "towers": "x" * 9000}, key=uuid4().hex)
        assert client.get_run(run_id).info.status == "RUNNING"
        registry.log_metrics(run_id, {"loss": 2.5, "validation/ndcg@5": 0.25}, step=10)
        registry.log_metrics(run_id, {"loss": math.nan}, step=20)
        registry.log_figure(run_id, Figure(), "retrievals/000010.png")
        registry.end(run_id)
        run = client.get_run(run_id)
        assert (run.info.status, run.info.run_name) == ("FINISHED", "monthly")
        assert run.data.params["learning_rate"] == "5e-05"
        assert set(run.data.params["towers"]) == {"x"}
        first, second = client.get_metric_history(run_id, "loss")
        assert (first.step, first.value, second.step) == (10, 2.5, 20)
        assert math.isnan(second.value)
        assert run.data.metrics["validation/ndcg_at_5"] == 0.25
        assert artefacts(client, run_id, tmp_path)["retrievals/000010.png"].startswith(b"\x89PNG")

    @pytest.mark.parametrize("end", [None, "FAILED", "KILLED"])
    def test_of_the_same_key_goes_on_with_what_was_left(
        self, registry: Registry, client: MlflowClient, end: str | None
    ) -> None:
        key = uuid4().hex
        run_id = registry.start_finetuning("monthly", {"pairs": 5}, key=key)
        registry.log_metrics(run_id, {"loss": 2.5}, step=10)
        if end:
            registry.end(run_id, end)  # type: ignore[arg-type]
        assert registry.start_finetuning("monthly", {"pairs": 5}, key=key) == run_id
        assert client.get_run(run_id).info.status == "RUNNING"
        registry.log_metrics(run_id, {"loss": 1.5}, step=20)
        assert [metric.step for metric in client.get_metric_history(run_id, "loss")] == [10, 20]

    def test_of_another_key_or_after_the_end_is_another_run(self, registry: Registry) -> None:
        key = uuid4().hex
        first = registry.start_finetuning("monthly", {}, key=key)
        other = registry.start_finetuning("monthly", {}, key=uuid4().hex)
        registry.end(first)
        assert len({first, other, registry.start_finetuning("monthly", {}, key=key)}) == 3


class TestPromote:
    def test_leaves_a_record_of_what_it_replaced(self, registry: Registry, client: MlflowClient) -> None:
        old, new = register(registry, 6), register(registry, 7)
        now = datetime(2026, 1, 31, 12, tzinfo=UTC)
        registry.promote(old, by="a test", reason="the first", now=now)
        registry.promote(new, by="a test", reason="better nDCG", now=now)
        assert registry.get(CHAMPION).version == new
        assert registry.get(CHAMPION).card == embedder(7)[0]
        assert (
            client.get_model_version(MODEL, str(new)).tags
            | {
                "promoted_at": now.isoformat(),
                "promoted_because": "better nDCG",
                "promoted_by": "a test",
                "promoted_over": str(old),
            }
            == client.get_model_version(MODEL, str(new)).tags
        )

    def test_the_candidate_stays_what_it_was(self, registry: Registry) -> None:
        old, new = register(registry, 8), register(registry, 9)
        registry.promote(old, by="a test", reason="a person said so", now=datetime.now(UTC))
        assert registry.get(CANDIDATE).version == new


class TestMoves:
    def test_each_is_kept_with_what_it_was_decided_on(self, registry: Registry) -> None:
        first, second = register(registry, 20), register(registry, 21)
        times = [datetime(2026, 1, 1, 12, 0, 0, n, tzinfo=UTC) for n in range(3)]
        registry.promote(first, by="lens on a by b", reason="the first", now=times[0])
        registry.promote(second, by="airflow", reason="better", now=times[1], thresholds={"recall_at_10": 0.7})
        registry.promote(first, by="lens on a by b", reason="schlechter – zurück", now=times[2])
        moves = registry.moves(first)
        assert [(move.at, move.because) for move in moves] == [
            (times[2], "schlechter – zurück"),
            (times[0], "the first"),
        ]
        assert (moves[0].over, moves[0].by) == (second, "lens on a by b")
        assert (moves[0].metrics["recall_at_10"], moves[0].thresholds) == (0.75, {})
        assert registry.moves(second)[0].thresholds == {"recall_at_10": 0.7}
        assert [move.version for move in registry.promotions() if move.version in (first, second)] == [
            first,
            second,
            first,
        ]

    def test_one_is_readable_on_the_version_s_page(self, registry: Registry, client: MlflowClient) -> None:
        version = register(registry, 22)
        now = datetime(2026, 1, 2, tzinfo=UTC)
        told = registry.record_move(version, by="MLflow", reason="moved", over=None, now=now)
        value = client.get_model_version(MODEL, str(version)).tags["move_20260102T000000.000000Z"]
        said = json.loads(value)
        assert (said["by"], said["over"], said["thresholds"]) == ("MLflow", "none", "none")
        assert said["metrics"]["recall_at_10"] == 0.75
        assert registry.moves(version) == [told]

    def test_of_the_champion_to_itself_is_none(self, registry: Registry) -> None:
        version = register(registry, 23)
        for _ in range(2):
            registry.promote(version, by="a test", reason="again", now=datetime.now(UTC))
        assert len(registry.moves(version)) == 1

    def test_of_an_unknown_version_is_refused(self, registry: Registry) -> None:
        register(registry, 1)
        with pytest.raises(LensError, match="no version or alias '4294967'"):
            registry.moves(4294967)


class TestGet:
    @pytest.mark.parametrize(
        "name", ["no-such-alias", "4294967", "", "²", "champion ", "../x"], ids=["alias", "version", *["odd"] * 4]
    )
    def test_an_unknown_name_is_one_sentence_with_the_remedy(self, registry: Registry, name: str) -> None:
        register(registry, 1)
        with pytest.raises(LensError, match="no version or alias") as refusal:
            registry.get(name)
        assert repr(name) in str(refusal.value)
        assert "lens projection fit" in str(refusal.value)
        assert "\n" not in str(refusal.value)

    def test_has_says_whether_an_alias_is_set(self, registry: Registry) -> None:
        register(registry, 1)
        assert registry.has(CANDIDATE)
        assert not registry.has("nobody-set-this")
        assert not registry.has(CHAMPION, "no-such-model")

    def test_has_does_not_take_a_failure_for_no(self, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        nowhere = Registry(MlflowClient("http://127.0.0.1:9", "http://127.0.0.1:9"))
        with pytest.raises(LensError, match="does not say whether listing-embedder has the alias 'champion'"):
            nowhere.has(CHAMPION)


def test_an_evaluation_can_be_read_back(registry: Registry, client: MlflowClient, tmp_path: Path) -> None:
    version = register(registry, 10)
    run_id = registry.log_evaluation(
        RegisteredEmbedder(version, embedder(10)[0]),
        window=WINDOW,
        counts={"read": 12, "evaluated": 10},
        means={"projected/ndcg@5": 0.75, "embedding/recall@1": 0.5},
        figures={"metrics_by_k": Figure(), "ndcg_by_dims": Figure()},
        page="<!doctype html><title>é</title>",
    )
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"projected/ndcg_at_5": 0.75, "embedding/recall_at_1": 0.5}
    assert run.data.params["model_version"] == str(version)
    assert (run.data.params["window"], run.data.params["evaluated"]) == (WINDOW, "10")
    assert run.data.params["space"] == embedder(10)[0].space
    files = artefacts(client, run_id, tmp_path)
    assert set(files) == {"metrics_by_k.png", "ndcg_by_dims.png", "report.html"}
    assert files["report.html"].decode() == "<!doctype html><title>é</title>"
    assert files["metrics_by_k.png"].startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9", "http://no-such-host.invalid:5000", "127.0.0.1:5000"], ids=["port", "host", "scheme"]
)
def test_a_server_that_is_not_there_is_reported_at_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # MLflow's client is not even asked: it would keep trying for minutes.
    monkeypatch.setattr("models.registry.MlflowClient", lambda **_: pytest.fail("MLflow's client was asked"))
    with pytest.raises(LensError, match=f"MLflow at {url} cannot be reached: start it with `lens up`"):
        Registry.connect(url)
