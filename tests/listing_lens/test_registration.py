"""The steps between jobs, on a real MLflow server: what a job left in the lake becomes a record, and no more is promoted
than should be.

They run after hours of computing, at the terminal and in Airflow, and may run twice. The fits and evaluations are
written by hand here. The champion is the whole server's, so it is set aside and put back.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pytest
from mlflow import MlflowClient
from tiny import FIRST, NOW

from listing_lens.comparison.records import Comparison, ComparisonRow, Estimate, Scores
from listing_lens.embedding.sources import publish_encoder
from listing_lens.errors import LensError
from listing_lens.finetuning.records import Finetune, comparison_path, save_comparison, save_finetune
from listing_lens.lake.fits import (
    Assessment,
    Change,
    Fit,
    Quality,
    assessment_path,
    fit_path,
    save_projection,
)
from listing_lens.lake.windows import Lake, evaluations
from listing_lens.registration import (
    VARIANTS,
    log_evaluation,
    log_verification,
    previous_projection,
    promote,
    promote_encoder,
    register_finetune,
    register_fit,
    standing,
    tell_move,
)
from listing_lens.registry import connect_registry
from listing_lens.search.index import SearchIndex
from listing_lens.search.lifecycle import Move, require_in_reach
from listing_lens.search.verification import Check, Verification
from listing_lens.settings import Settings, load_settings
from models.embedder import CANDIDATE, CHAMPION, ENCODER_MODEL, MODEL, EmbedderCard
from models.encoders.files import identify
from models.encoders.small_siglip import save_untrained_siglip
from models.metrics import METRICS
from models.moments import Moments
from models.projection import fit_projection
from models.registry import Registry


@pytest.fixture
def settings(tmp_path: Path, mlflow_url: str) -> Settings:
    return load_settings(home=tmp_path / "home", lake=str(tmp_path / "lake"), mlflow_url=mlflow_url)


@pytest.fixture
def registry(settings: Settings) -> Registry:
    return connect_registry(settings)


@pytest.fixture
def no_champion(registry: Registry) -> Iterator[None]:
    before = registry.get(CHAMPION).version if registry.has(CHAMPION) else None
    if before is not None:
        registry.client.delete_registered_model_alias(MODEL, CHAMPION)
    yield
    if before is None:
        registry.client.delete_registered_model_alias(MODEL, CHAMPION)
    else:
        registry.client.set_registered_model_alias(MODEL, CHAMPION, str(before))


def fitted(settings: Settings, name: str, seed: int, side: int = 2) -> EmbedderCard:
    """What the job fit_projection leaves in the lake: of the encoder of thumbnails, which needs no files."""
    lake = Lake(settings.lake)
    rows = np.random.default_rng([2026, seed]).standard_normal((60, 6)).astype(np.float32)
    projection = fit_projection(Moments.of(rows), 3)
    save_projection(lake, projection)
    card = EmbedderCard(
        encoder_source=f"pixels:{side}",
        encoder_id=f"pixels-{side}",
        encoder_dims=6,
        projection_id=projection.projection_id,
        dims=3,
    )
    fit = Fit(card=card, rows=60, version=7, within=FIRST.name, explained_variance=0.5)
    lake.write_bytes(fit_path(lake, name), fit.model_dump_json().encode())
    return card


def assessed(card: EmbedderCard, before: EmbedderCard) -> Assessment:
    """What the job assess_projection leaves in the lake."""
    qualities = [
        Quality(projection_id=one.projection_id, dims=3, recall={3: {"recall@1": at, "recall@10": at}})
        for one, at in ((card, 0.75), (before, 0.5))
    ]
    change = Change(
        before=qualities[1],
        largest_angle_degrees=12.5,
        mean_angle_degrees=4.0,
        variance_held=0.9,
        gain=0.25,
        gain_error=0.01,
    )
    return Assessment(items=300, queries=100, fitted=qualities[0], change=change)


def compared(encoder_id: str) -> Comparison:
    """What a comparison leaves in the lake."""

    def scores(mean: float) -> Scores:
        estimate = Estimate(mean=mean, low=round(mean - 0.1, 3), high=round(mean + 0.1, 3))
        return Scores(sessions=70, clusters=9, metrics={"ndcg@5": estimate})

    gain = Estimate(mean=0.2, low=0.1, high=0.3)
    return Comparison(
        name="monthly",
        rows=(
            ComparisonRow(role="fine-tuned", encoder_id=encoder_id, variant="embedding", unseen=scores(0.6), gain=gain),
            ComparisonRow(role="parent", encoder_id="parent-12345678", variant="embedding", unseen=scores(0.4)),
            ComparisonRow(role="random", unseen=scores(0.1)),
            ComparisonRow(role="logged", unseen=scores(0.5)),
        ),
    )


class TestRegister:
    def test_makes_the_fit_a_candidate(self, settings: Settings, registry: Registry) -> None:
        card = fitted(settings, "weekly", 1)
        version = register_fit("weekly", settings)
        assert registry.get(str(version)).card == card
        assert registry.get(CANDIDATE).version == version
        run = registry.client.get_run(registry.client.get_model_version(MODEL, str(version)).run_id)
        assert (run.data.params["table_version"], run.data.params["within"]) == ("7", FIRST.name)

    def test_logs_the_assessment_with_the_fit(self, settings: Settings, registry: Registry) -> None:
        before, card = fitted(settings, "old", 80), fitted(settings, "weekly", 81)
        lake = Lake(settings.lake)
        assessment = assessed(card, before)
        lake.write_bytes(assessment_path(lake, "weekly"), assessment.model_dump_json().encode())
        version = register_fit("weekly", settings)
        run_id = registry.client.get_model_version(MODEL, str(version)).run_id
        metrics = registry.client.get_run(run_id).data.metrics
        assert (metrics["recall_at_10"], metrics["before/recall_at_10"]) == (0.75, 0.5)
        assert (metrics["gain"], metrics["largest_angle_degrees"]) == (0.25, 12.5)
        assert (metrics["assessed_items"], metrics["assessed_queries"]) == (300, 100)
        tags = registry.client.get_run(run_id).data.tags
        assert (tags["projection_before"], tags["mlflow.note.content"]) == (before.projection_id, assessment.advice)
        assert registry.client.get_model_version(MODEL, str(version)).description == assessment.advice
        assert "recall_by_dims.png" in {file.path for file in registry.client.list_artifacts(run_id)}

    def test_refuses_the_assessment_of_an_earlier_fit_of_that_name(self, settings: Settings) -> None:
        before, card = fitted(settings, "old", 88), fitted(settings, "weekly", 89)
        lake = Lake(settings.lake)
        lake.write_bytes(assessment_path(lake, "weekly"), assessed(before, card).model_dump_json().encode())
        with pytest.raises(LensError, match=f"is of projection {before.projection_id}.*assess it again"):
            register_fit("weekly", settings)

    def test_run_again_registers_nothing_new(self, settings: Settings) -> None:
        fitted(settings, "weekly", 2)
        assert register_fit("weekly", settings) == register_fit("weekly", settings)

    def test_of_no_fit_says_how_to_make_one(self, settings: Settings) -> None:
        with pytest.raises(LensError, match="no fit 'weekly' in the lake .*: run `lens projection fit`"):
            register_fit("weekly", settings)

    def test_of_a_fit_without_its_projection_registers_nothing(self, settings: Settings, registry: Registry) -> None:
        card = fitted(settings, "weekly", 3)
        Path(settings.lake, "projections", card.projection_id, "projection.safetensors").unlink()
        with pytest.raises(LensError, match=f"projection {card.projection_id} is not in the lake"):
            register_fit("weekly", settings)
        assert not registry.client.search_model_versions(f"name = '{MODEL}' and tags.space = '{card.space}'")


@pytest.mark.usefixtures("no_champion")
class TestPreviousProjection:
    def test_is_the_champions(self, settings: Settings) -> None:
        old = fitted(settings, "old", 82)
        fitted(settings, "weekly", 83)
        assert previous_projection("weekly", settings) is None
        promote(register_fit("old", settings), asked=True, settings=settings)
        assert previous_projection("weekly", settings) == old.projection_id

    def test_of_another_encoder_is_none(self, settings: Settings) -> None:
        fitted(settings, "old", 84, side=3)
        fitted(settings, "weekly", 85)
        promote(register_fit("old", settings), asked=True, settings=settings)
        assert previous_projection("weekly", settings) is None

    def test_of_another_lake_is_none_and_said(
        self, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        old = fitted(settings, "old", 86)
        promote(register_fit("old", settings), asked=True, settings=settings)
        elsewhere = settings.model_copy(update={"lake": str(tmp_path / "elsewhere")})
        fitted(elsewhere, "weekly", 87)
        assert previous_projection("weekly", elsewhere) is None
        assert f"projection {old.projection_id} is not in the lake" in caplog.text


@pytest.mark.usefixtures("no_champion")
def test_only_the_first_is_promoted_unasked(settings: Settings, registry: Registry) -> None:
    versions = []
    for seed in (4, 5):
        fitted(settings, f"fit-{seed}", seed)
        versions.append(register_fit(f"fit-{seed}", settings))
    first, second = versions
    assert promote(first, asked=False, settings=settings)
    assert not promote(second, asked=False, settings=settings)
    assert registry.get(CHAMPION).version == first
    assert promote(second, asked=True, settings=settings)
    assert registry.get(CHAMPION).version == second

    client: MlflowClient = registry.client
    tags = [client.get_model_version(MODEL, str(version)).tags for version in versions]
    assert [tag["promoted_because"] for tag in tags] == ["there was no champion", "asked for by the run that fitted it"]
    assert [tag["promoted_over"] for tag in tags] == ["none", str(first)]


@pytest.mark.usefixtures("no_champion")
class TestPromote:
    def test_says_who_asked_and_why(self, settings: Settings, registry: Registry) -> None:
        fitted(settings, "weekly", 20)
        version = register_fit("weekly", settings)
        promote(version, asked=True, settings=settings, by="airflow refit_projection run 1", because="it is better")
        move = registry.moves(version)[0]
        assert (move.by, move.because, move.over) == ("airflow refit_projection run 1", "it is better", None)
        run = registry.client.get_run(registry.client.get_model_version(MODEL, str(version)).run_id)
        assert move.metrics == run.data.metrics

    def test_at_a_terminal_is_by_the_user(self, settings: Settings, registry: Registry) -> None:
        fitted(settings, "weekly", 21)
        version = register_fit("weekly", settings)
        promote(version, asked=True, settings=settings)
        assert re.fullmatch(r"lens on \S+ by .+", registry.moves(version)[0].by)

    def test_refuses_what_cannot_serve_and_moves_nothing(self, settings: Settings, registry: Registry) -> None:
        fitted(settings, "old", 22)
        old = register_fit("old", settings)
        promote(old, asked=True, settings=settings)
        card = fitted(settings, "weekly", 23)
        version = register_fit("weekly", settings)
        shutil.rmtree(Path(settings.lake, "projections", card.projection_id))
        with pytest.raises(LensError, match=f"projection {card.projection_id} is not in the lake .*: fit it again"):
            promote(version, asked=True, settings=settings)
        assert registry.get(CHAMPION).version == old
        assert registry.moves(version) == []


class TestInReach:
    def test_an_embedder_is_whose_files_are_there(self, settings: Settings) -> None:
        require_in_reach(fitted(settings, "weekly", 24), settings)

    def test_an_encoder_that_is_gone_is_not(self, settings: Settings, tmp_path: Path) -> None:
        gone = str(tmp_path / "gone")
        card = fitted(settings, "weekly", 25).model_copy(update={"encoder_source": gone, "encoder_id": "small-1"})
        with pytest.raises(LensError, match="encoder small-1 is not in reach.*: give a folder") as refusal:
            require_in_reach(card, settings)
        assert "\n" not in str(refusal.value)

    def test_an_encoder_that_has_changed_is_not(self, settings: Settings, tmp_path: Path) -> None:
        folder = save_untrained_siglip(tmp_path / "small", seed=1)
        card = fitted(settings, "weekly", 26).model_copy(
            update={"encoder_source": str(folder), "encoder_id": identify(str(folder))}
        )
        require_in_reach(card, settings)
        save_untrained_siglip(folder, seed=2)
        with pytest.raises(
            LensError, match=f"is now small-.*, but space .* needs {card.encoder_id}: restore its files"
        ):
            require_in_reach(card, settings)


@pytest.mark.usefixtures("no_champion")
class TestStanding:
    @pytest.fixture
    def settings(self, settings: Settings, elasticsearch_url: str) -> Iterator[Settings]:
        settings = settings.model_copy(
            update={"elasticsearch_url": elasticsearch_url, "alias": f"test-{uuid4().hex[:8]}"}
        )
        yield settings
        search_index = SearchIndex.connect(settings)
        for index in search_index.all():
            search_index.client.indices.delete(index=index.name)

    def test_without_a_champion_is_settled(self, settings: Settings) -> None:
        at = standing(settings)
        assert (at.champion, at.live, at.follows) == (None, None, None)
        assert at.is_settled
        assert tell_move(at, settings, NOW) is None

    def test_is_settled_when_the_champion_is_live(self, settings: Settings) -> None:
        card = fitted(settings, "weekly", 27)
        version = register_fit("weekly", settings)
        promote(version, asked=True, settings=settings)
        assert standing(settings).follows == Move("rebuild", version)
        search_index = SearchIndex.connect(settings)
        search_index.swap(search_index.create(card, "b1").name)
        assert standing(settings).is_settled

    def test_a_move_in_mlflow_is_told_once(self, settings: Settings, registry: Registry) -> None:
        cards, versions = [], []
        for seed in (28, 29):
            cards.append(fitted(settings, f"fit-{seed}", seed))
            versions.append(register_fit(f"fit-{seed}", settings))
        promote(versions[0], asked=True, settings=settings)
        search_index = SearchIndex.connect(settings)
        search_index.swap(search_index.create(cards[0], "b1").name)

        registry.client.set_registered_model_alias(MODEL, CHAMPION, str(versions[1]))
        at = standing(settings)
        assert (at.told, at.is_settled) == (None, False)
        now = datetime.now(UTC)
        told = tell_move(at, settings, now)
        assert told is not None
        assert (told.by, told.over, told.at, told.version) == ("MLflow", versions[0], now, versions[1])
        at = standing(settings)
        assert at.told == told
        assert tell_move(at, settings, datetime.now(UTC)) == told

        # Back again: nothing has to be built, but that is a move too.
        registry.client.set_registered_model_alias(MODEL, CHAMPION, str(versions[0]))
        at = standing(settings)
        assert (at.follows, at.told, at.is_settled) == (None, None, False)
        tell_move(at, settings, datetime.now(UTC))
        assert standing(settings).is_settled
        assert len(registry.moves(versions[0])) == 2


class TestFinetunes:
    @pytest.fixture
    def trained(self, settings: Settings, tmp_path: Path) -> Callable[..., Finetune]:
        """What a training leaves in the lake."""

        def leave(seed: int, run_id: str | None) -> Finetune:
            lake = Lake(settings.lake)
            source = publish_encoder(lake, save_untrained_siglip(tmp_path / f"trained-{seed}", seed=seed))
            record = Finetune(
                name="monthly",
                pairs="monthly",
                window=FIRST.name,
                pairs_fingerprint="0123456789abcdef",
                parent_source="google/parent",
                parent_id="parent-12345678",
                parent_revision=None,
                recipe={"learning_rate": 5e-5},
                encoder_source=source,
                encoder_id=identify(source),
                mlflow_run_id=run_id,
                steps=70,
                best_step=70,
                stopped="all epochs are done",
                metrics={"recall@1": 0.5},
            )
            save_finetune(lake, record)
            save_comparison(lake, compared(record.encoder_id))
            return record

        return leave

    def test_register_makes_the_encoder_a_candidate_of_its_run(
        self, settings: Settings, registry: Registry, trained: Callable[..., Finetune]
    ) -> None:
        run_id = registry.start_finetuning("monthly", {}, key=str(settings.home))
        record = trained(71, run_id)
        version = register_finetune("monthly", settings)
        assert register_finetune("monthly", settings) == version
        found = registry.get_encoder(CANDIDATE)
        assert (found.version, found.encoder_id, found.source) == (version, record.encoder_id, record.encoder_source)
        assert (found.parent_id, found.pairs_fingerprint) == ("parent-12345678", "0123456789abcdef")
        assert registry.client.get_model_version(ENCODER_MODEL, str(version)).run_id == run_id

    def test_register_says_what_the_comparison_found_wherever_it_is_looked_at(
        self, settings: Settings, registry: Registry, trained: Callable[..., Finetune]
    ) -> None:
        record = trained(74, registry.start_finetuning("monthly", {}, key=f"{settings.home} compared"))
        version = registry.client.get_model_version(ENCODER_MODEL, str(register_finetune("monthly", settings)))
        run = registry.client.get_run(record.mlflow_run_id).data
        assert version.description == run.tags["mlflow.note.content"] == compared(record.encoder_id).headline
        assert version.description.startswith("nDCG@5 0.600 (0.500 to 0.700) on 70 unseen test sessions of 9 products")
        assert (
            run.metrics.items()
            >= {
                "test/ndcg_at_5": 0.6,
                "test/ndcg_at_5_low": 0.5,
                "test/gain": 0.2,
                "test/parent/ndcg_at_5": 0.4,
                "test/random/ndcg_at_5": 0.1,
                "test/logged/ndcg_at_5": 0.5,
                "test/sessions": 70,
            }.items()
        )

    def test_register_needs_a_comparison_of_this_encoder(
        self, settings: Settings, trained: Callable[..., Finetune]
    ) -> None:
        trained(75, None)
        lake = Lake(settings.lake)
        save_comparison(lake, compared("another-12345678"))
        with pytest.raises(LensError, match="the comparison of 'monthly' is not of .*, but of an earlier training"):
            register_finetune("monthly", settings)
        Path(comparison_path(lake, "monthly")).unlink()
        with pytest.raises(LensError, match="'monthly' was not compared yet"):
            register_finetune("monthly", settings)

    def test_register_of_a_training_without_mlflow_makes_its_run(
        self, settings: Settings, registry: Registry, trained: Callable[..., Finetune]
    ) -> None:
        trained(72, None)
        version = register_finetune("monthly", settings)
        run = registry.client.get_run(registry.client.get_model_version(ENCODER_MODEL, str(version)).run_id)
        assert (run.info.status, run.data.metrics["recall_at_1"]) == ("FINISHED", 0.5)

    def test_promote_says_why(self, settings: Settings, registry: Registry, trained: Callable[..., Finetune]) -> None:
        trained(73, None)
        version = register_finetune("monthly", settings)
        promote_encoder(version, settings)
        assert registry.get_encoder(CHAMPION).version == version
        tags = registry.client.get_model_version(ENCODER_MODEL, str(version)).tags
        assert tags["promoted_because"] == "asked for by the run that trained it"
        registry.client.delete_registered_model_alias(ENCODER_MODEL, CHAMPION)


class TestEvaluation:
    def test_is_logged_and_its_page_written(self, settings: Settings, registry: Registry) -> None:
        card = fitted(settings, "weekly", 6)
        embedder = registry.get(str(register_fit("weekly", settings)))
        means = {f"{variant}/{name}": 0.25 for variant in VARIANTS for name in METRICS}
        counts = {"read": 5, "evaluated": 3, "nothing_tapped": 2, "query_unreadable": 0, "item_not_embedded": 0}
        Lake(settings.lake).write_table(
            evaluations(card.space),
            FIRST,
            pa.table({"session_id": ["s"]}),
            NOW,
            counts=counts,
            parameters={"metrics": means},
        )
        page = log_evaluation(FIRST, embedder, settings)
        assert page == settings.home / "pages" / f"evaluation-{FIRST.name}-v{embedder.version}.html"
        html = page.read_text(encoding="utf-8")
        assert card.space in html
        assert "0.250" in html
        experiment = registry.client.get_experiment_by_name("offline evaluation")
        [run] = registry.client.search_runs([experiment.experiment_id], f"params.space = '{card.space}'")
        assert run.info.status == "FINISHED"
        assert run.data.params["nothing_tapped"] == "2"
        assert run.data.metrics["embedding/ndcg_at_5"] == 0.25
        logged = registry.client.download_artifacts(run.info.run_id, "report.html", str(settings.home))
        assert Path(logged).read_text(encoding="utf-8") == html

    def test_that_the_lake_does_not_hold_is_named(self, settings: Settings, registry: Registry) -> None:
        card = fitted(settings, "weekly", 7)
        embedder = registry.get(str(register_fit("weekly", settings)))
        with pytest.raises(LensError, match=f"evaluations/{card.space} of .* are not in the lake"):
            log_evaluation(FIRST, embedder, settings)


class TestVerification:
    def test_is_logged_and_its_page_written(self, settings: Settings, registry: Registry) -> None:
        name = f"listings-{settings.home.parent.name}"
        verification = Verification(
            index=name,
            space="x-pca3-1",
            table_version=7,
            began_at=NOW,
            ended_at=NOW,
            checks=(
                Check(name="mapping", passed=True, says="all is well"),
                Check(name="recall", passed=False, says="few are found", measured=0.75, threshold=0.9),
                Check(name="ndcg", passed=None, says="left out"),
            ),
        )
        page = log_verification(verification, settings)
        assert page == settings.home / "pages" / f"verification-{name}.html"
        html = page.read_text(encoding="utf-8")
        assert "few are found" in html
        experiment = registry.client.get_experiment_by_name("index verification")
        [run] = registry.client.search_runs([experiment.experiment_id], f"params.index = '{name}'")
        assert run.info.status == "FINISHED"
        assert run.data.params == {"index": name, "space": "x-pca3-1", "table_version": "7"}
        assert run.data.metrics == {"passed": 0, "mapping/passed": 1, "recall/passed": 0, "recall": 0.75}
        logged = registry.client.download_artifacts(run.info.run_id, "report.html", str(settings.home))
        assert Path(logged).read_text(encoding="utf-8") == html
