"""Settings: who beats whom, and that a mistake in one is a sentence that names it."""

from __future__ import annotations

import json
import pickle
import tomllib
from datetime import date
from pathlib import Path

import pytest

from listing_lens.errors import LensError
from listing_lens.settings import DEFAULTS, Settings, load_settings, missing, stack_file


@pytest.fixture(autouse=True)
def no_settings_of_the_developer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"LENS_{name.upper()}", raising=False)
    monkeypatch.chdir(tmp_path)


def start_stack(home: Path, **addresses: str) -> None:
    home.mkdir(exist_ok=True)
    stack_file(home).write_text(json.dumps({"addresses": addresses}))


class TestPrecedence:
    def test_every_setting_has_a_default_and_every_default_is_a_setting(self) -> None:
        assert set(tomllib.loads(DEFAULTS.read_text())) == set(Settings.model_fields)

    def test_every_default_is_explained_in_the_line_above_it(self) -> None:
        lines = DEFAULTS.read_text().splitlines()
        for name in Settings.model_fields:
            (at,) = [n for n, line in enumerate(lines) if line.startswith((f"{name} = ", f"[{name}]"))]
            assert lines[at - 1].startswith("# "), name

    def test_defaults_are_in_force_without_anything_else(self) -> None:
        settings = load_settings()
        assert settings.projection_dims == 128
        assert settings.mlflow_url == ""

    def test_the_running_stack_beats_the_defaults(self, tmp_path: Path) -> None:
        start_stack(tmp_path / ".lens", mlflow_url="http://stack")
        assert load_settings().mlflow_url == "http://stack"

    def test_the_environment_beats_the_running_stack(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        start_stack(tmp_path / ".lens", mlflow_url="http://stack")
        monkeypatch.setenv("LENS_MLFLOW_URL", "http://environment")
        assert load_settings().mlflow_url == "http://environment"

    def test_an_argument_beats_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LENS_MLFLOW_URL", "http://environment")
        assert load_settings(mlflow_url="http://argument").mlflow_url == "http://argument"

    def test_an_empty_variable_says_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        start_stack(tmp_path / ".lens", mlflow_url="http://stack")
        monkeypatch.setenv("LENS_MLFLOW_URL", "")
        assert load_settings().mlflow_url == "http://stack"

    def test_the_stack_is_looked_for_where_home_is_set_to(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        start_stack(tmp_path / "elsewhere", mlflow_url="http://elsewhere")
        assert load_settings(home=tmp_path / "elsewhere").mlflow_url == "http://elsewhere"
        monkeypatch.setenv("LENS_HOME", str(tmp_path / "elsewhere"))
        assert load_settings().mlflow_url == "http://elsewhere"


class TestValues:
    @pytest.mark.parametrize(
        ("name", "text", "value"),
        [
            ("IMAGE_SOURCES", '["/photos", "gs://b/"]', ("/photos", "gs://b/")),
            ("BEAM_OPTIONS", '{"region": "r", "n": 2}', {"region": "r", "n": 2}),
            ("EMBED_START", "2026-02-03", date(2026, 2, 3)),
            ("IMAGE_TIMEOUT_S", "2.5", 2.5),
            (
                "TRAINING_OPTIONS",
                '{"container_resources": {"limits": {"g": "1"}}}',
                {"container_resources": {"limits": {"g": "1"}}},
            ),
        ],
        ids=["list", "table", "day", "number", "nested table"],
    )
    def test_are_read_from_the_environment(
        self, monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: object
    ) -> None:
        monkeypatch.setenv(f"LENS_{name}", text)
        assert getattr(load_settings(), name.lower()) == value

    def test_local_paths_stay_the_same_from_another_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LENS_IMAGE_SOURCES", '["photos", "https://img.example.com/"]')
        settings = load_settings(cache="cache")
        assert (settings.home, settings.cache) == (tmp_path / ".lens", tmp_path / "cache")
        assert settings.lake == str(tmp_path / ".lens" / "lake")
        assert settings.image_sources == (str(tmp_path / "photos"), "https://img.example.com/")

    def test_checkpoints_are_kept_in_the_cache_unless_a_folder_is_named(self, tmp_path: Path) -> None:
        unnamed, named = load_settings(cache="cache"), load_settings(training_folder="checkpoints")
        assert (unnamed.training_folder, unnamed.keeps_checkpoints) == (tmp_path / "cache" / "finetune", False)
        assert (named.training_folder, named.keeps_checkpoints) == (tmp_path / "checkpoints", True)

    def test_a_lake_in_the_cloud_stays_as_it_is(self) -> None:
        assert load_settings(lake="gs://bucket/lake").lake == "gs://bucket/lake"


class TestRefused:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("IMAGE_MAX_BYTES", "many"),
            ("IMAGE_MAX_PIXELS", "0"),
            ("IMAGE_TIMEOUT_S", "nan"),
            ("MAX_DEAD_LETTER_RATIO", "1.5"),
            ("PROJECTION_DIMS", "-1"),
            ("ALIAS", "Listings!"),
            ("EMBED_START", "tomorrow"),
            ("IMAGE_SOURCES", "/photos"),
            ("IMAGE_PRIVATE_NETWORKS", '["10.0.0.1/8"]'),
            ("IMAGE_PRIVATE_NETWORKS", '["img.internal"]'),
            ("BEAM_OPTIONS", "{"),
            ("TRAINING_PLACE", "moon"),
            ("TRAINING_PROCESSES", "0"),
        ],
    )
    def test_a_bad_value_by_the_variables_name(self, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
        monkeypatch.setenv(f"LENS_{name}", value)
        with pytest.raises(LensError, match=f"^setting LENS_{name}: ") as refusal:
            load_settings()
        assert "\n" not in str(refusal.value)

    def test_an_unknown_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LENS_LAKES", "gs://bucket")
        with pytest.raises(LensError, match=r"^LENS_LAKES is not a setting: see listing_lens/defaults\.toml"):
            load_settings()

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"addresses": 3}'])
    def test_not_for_a_damaged_stack_file_which_the_stack_s_commands_heal(self, tmp_path: Path, text: str) -> None:
        start_stack(tmp_path / ".lens")
        stack_file(tmp_path / ".lens").write_text(text)
        assert load_settings().mlflow_url == ""

    def test_an_address_without_a_scheme(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LENS_MLFLOW_URL", "localhost:5000")
        with pytest.raises(LensError, match="LENS_MLFLOW_URL: .*must begin with http:// or https://"):
            load_settings()

    def test_an_address_with_a_password(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LENS_ELASTICSEARCH_URL", "https://user:hush@search.example.com")
        with pytest.raises(LensError, match="LENS_ELASTICSEARCH_URL: .*must not hold a user or password"):
            load_settings()

    def test_a_home_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "home").write_text("")
        with pytest.raises(LensError, match=r"home is a file: name a folder"):
            load_settings(home=tmp_path / "home")

    def test_going_on_without_a_setting(self) -> None:
        with pytest.raises(LensError, match="^LENS_MLFLOW_URL is not set and no local stack is up: start it$"):
            missing("mlflow_url", "start it")


class TestSecrets:
    def test_are_not_shown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LENS_ELASTICSEARCH_API_KEY", "hush-hush")
        settings = load_settings()
        for text in (repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()):
            assert "hush-hush" not in text
        assert settings.elasticsearch_api_key.get_secret_value() == "hush-hush"


class TestElsewhere:
    def test_only_what_means_the_same_there_is_given(self, tmp_path: Path) -> None:
        given = load_settings(
            home=tmp_path / "home",
            lake="gs://bucket/lake",
            elasticsearch_api_key="hush-hush",
            training_place="kubernetes",
            training_options={"namespace": "ml"},
        ).environment_elsewhere
        assert given["LENS_LAKE"] == "gs://bucket/lake"
        assert given["LENS_PROJECTION_DIMS"] == "128"
        assert not {"LENS_HOME", "LENS_CACHE", "LENS_TRAINING_FOLDER", "LENS_TRAINING_PLACE"} & given.keys()
        assert "hush-hush" not in str(given)

    def test_a_folder_for_checkpoints_goes_along_when_it_is_named(self) -> None:
        given = load_settings(training_folder="/checkpoints").environment_elsewhere
        assert given["LENS_TRAINING_FOLDER"] == "/checkpoints"

    def test_it_can_be_read_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        here = load_settings(lake="gs://bucket/lake", comparison_encoders=["a", "b"], image_sources=["gs://b/"])
        for name, value in here.environment_elsewhere.items():
            monkeypatch.setenv(name, value)
        there = load_settings()
        assert (there.lake, there.comparison_encoders, there.image_sources) == (
            "gs://bucket/lake",
            ("a", "b"),
            ("gs://b/",),
        )


def test_a_process_that_is_given_the_environment_sees_the_same_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = load_settings(
        home=tmp_path / "home",
        elasticsearch_api_key="hush-hush",
        image_sources=["/photos", "gs://b/"],
        beam_options={"region": "r", "n": 2},
        max_dead_letter_ratio=0.25,
        embed_start="2026-02-03",
    )
    for name, value in given.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir("/")
    assert load_settings() == given
    assert pickle.loads(pickle.dumps(given)) == given
