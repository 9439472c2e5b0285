"""Settings: the environment (``LENS_…``) over the local stack's addresses, the home's settings and the defaults."""

from __future__ import annotations

import json
import os
from datetime import date
from functools import cached_property
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal, NoReturn

import platformdirs
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from listing_lens.errors import LensError
from models.encoders.runtime import Backend, Device

DEFAULTS = Path(__file__).with_name("defaults.toml")

# Meaningless on another machine: this one's folders, how work is distributed from here, and who may ask the service.
_OF_THIS_MACHINE = frozenset(
    {
        *("home", "cache", "airflow_url"),
        *("training_place", "training_image", "training_options", "training_processes"),
        *("search_url", "search_keys", "search_user_header", "search_proxies"),
    }
)

# What Elasticsearch's `index_options` may be: graphs over whole vectors, or over ones of a byte or a bit per dimension.
_INDEX_TYPES = ("hnsw", "int8_hnsw", "bbq_hnsw")


class Settings(BaseSettings):
    """One field per setting; ``defaults.toml`` explains each and holds its default."""

    model_config = SettingsConfigDict(
        env_prefix="LENS_", env_ignore_empty=True, toml_file=DEFAULTS, extra="forbid", frozen=True
    )

    home: Path
    cache: Path
    lake: str
    elasticsearch_url: str
    elasticsearch_api_key: SecretStr
    mlflow_url: str
    airflow_url: str
    listings_feed: Literal["import", "service"]
    image_sources: tuple[str, ...]
    image_store: str
    image_max_bytes: int = Field(gt=0)
    image_max_pixels: int = Field(gt=0)
    image_timeout_s: float = Field(gt=0)
    image_private_networks: tuple[str, ...]
    encoder: str = Field(min_length=1)
    encoder_batch_size: int = Field(gt=0)
    encoder_device: Device
    encoder_backends: tuple[Backend, ...] = Field(min_length=1)
    encoder_trusted_code: tuple[str, ...]
    embedding_dtype: Literal["float32", "float16"]
    lake_retention_days: float = Field(gt=0)
    lake_removed_days: float = Field(gt=0)
    projection_dims: int = Field(gt=0, le=4096)
    max_dead_letter_ratio: float = Field(ge=0, le=1)
    alias: str = Field(pattern=r"^[a-z][a-z0-9-]*$")
    index_shards: int = Field(gt=0, le=1024)
    index_replicas: str = Field(pattern=r"^\d+(-(\d+|all))?$")
    index_options: dict[str, Any]
    index_refresh: str = Field(pattern=r"^(-1|\d+(ms|s|m))$")
    index_segments: int = Field(ge=0)
    index_writers: int = Field(gt=0, le=64)
    index_removed_days: float = Field(ge=0)
    index_keep_builds: int = Field(ge=0)
    index_keep_days: float = Field(ge=0)
    verify_queries: int = Field(ge=10)
    verify_sample: int = Field(ge=10)
    verify_canaries: int = Field(ge=0)
    verify_least_recall: float = Field(ge=0, le=1)
    verify_least_found: float = Field(ge=0, le=1)
    verify_least_size: float = Field(ge=0)
    search_url: str
    search_follow_s: float = Field(gt=0)
    search_budget_s: float = Field(gt=0)
    search_waiting: int = Field(ge=0)
    search_together: int = Field(gt=0)
    search_text: bool
    search_text_weight: float = Field(ge=0, le=1)
    search_generator: str
    search_generator_at_once: int = Field(gt=0)
    search_in_flight: int = Field(gt=0)
    search_rates: dict[str, str]
    search_keys: dict[str, str]
    search_user_header: str
    search_open_events: bool
    search_log_days: int = Field(ge=0)
    search_log_every_s: float = Field(gt=0)
    search_proxies: tuple[str, ...]
    similar_price_factor: float = Field(ge=0)
    similar_category_weight: float = Field(ge=0, le=1)
    similar_pool: int = Field(gt=0, le=20)
    training_place: Literal["host", "kubernetes", "vertex"]
    training_processes: int = Field(gt=0)
    training_readers: int = Field(ge=0)
    training_micro_batch_size: int = Field(ge=0)
    training_gradient_checkpointing: bool
    training_checkpoint_every: int = Field(gt=0)
    training_folder: Path
    training_image: str
    training_options: dict[str, Any]
    comparison_encoders: tuple[str, ...]
    embed_schedule: str = Field(min_length=1)
    embed_start: date
    beam_runner: str
    beam_options: dict[str, Any]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        defaults = TomlConfigSettingsSource(settings_cls)
        home = Path(init_settings().get("home") or os.environ.get("LENS_HOME") or defaults()["home"])
        of_home = TomlConfigSettingsSource(settings_cls, home_file(home))
        stack = InitSettingsSource(settings_cls, running_stack(home))
        return init_settings, env_settings, stack, of_home, defaults

    def model_post_init(self, _context: object) -> None:
        # Jobs and servers run in other working directories: every local path is made absolute once, here.
        object.__setattr__(self, "home", self.home.absolute())
        cache = self.cache if _is_given(self.cache) else platformdirs.user_cache_path("listing-lens")
        object.__setattr__(self, "cache", cache.absolute())
        training_folder = self.training_folder if _is_given(self.training_folder) else self._folder_in_cache
        object.__setattr__(self, "training_folder", training_folder.absolute())
        if "://" not in self.lake:
            object.__setattr__(self, "lake", str(Path(self.lake).absolute()))
        if self.image_store and "://" not in self.image_store:
            object.__setattr__(self, "image_store", str(Path(self.image_store).absolute()))
        sources = (source if "://" in source else str(Path(source).absolute()) for source in self.image_sources)
        object.__setattr__(self, "image_sources", tuple(sources))

    @field_validator("elasticsearch_url", "mlflow_url", "airflow_url", "search_url", "search_generator")
    @classmethod
    def _is_address(cls, url: str) -> str:
        if url and not url.startswith(("http://", "https://")):
            raise ValueError("an address must begin with http:// or https://")
        # Addresses are printed and logged.
        if "@" in url:
            raise ValueError(
                "an address must not hold a user or password; Elasticsearch's key is LENS_ELASTICSEARCH_API_KEY"
            )
        return url

    @field_validator("index_options")
    @classmethod
    def _are_index_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        if options.get("type") not in _INDEX_TYPES:
            raise ValueError(f"its type must be one of {', '.join(_INDEX_TYPES)}")
        return options

    @field_validator("image_private_networks", "search_proxies")
    @classmethod
    def _are_networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for network in networks:
            ip_network(network)
        return networks

    @property
    def _folder_in_cache(self) -> Path:
        return self.cache / "finetune"

    @property
    def keeps_checkpoints(self) -> bool:
        """Whether a folder for checkpoints was set, rather than derived from the training machine's cache."""
        return self.training_folder != self._folder_in_cache

    @cached_property
    def environment(self) -> dict[str, str]:
        """The settings as environment variables, for a process that is to see the same ones (secrets included)."""
        values = self.model_dump(mode="json") | {"elasticsearch_api_key": self.elasticsearch_api_key.get_secret_value()}
        return {
            f"LENS_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
            for name, value in values.items()
            if value != ""
        }

    @property
    def environment_elsewhere(self) -> dict[str, str]:
        """The same for a process on another machine, which has folders of its own: without secrets."""
        stays = {name for name, field in Settings.model_fields.items() if field.annotation is SecretStr}
        stays |= _OF_THIS_MACHINE | (set() if self.keeps_checkpoints else {"training_folder"})
        names = {f"LENS_{name.upper()}" for name in stays}
        return {name: value for name, value in self.environment.items() if name not in names}


def _is_given(folder: Path) -> bool:
    return str(folder) not in ("", ".")


def home_file(home: Path) -> Path:
    """Settings that hold for whatever has this home, below the environment's; the demo keeps its own there."""
    return home / "settings.toml"


def stack_file(home: Path) -> Path:
    """Where ``lens up`` writes the addresses of what it started."""
    return home / "stack.json"


def running_stack(home: Path) -> dict[str, str]:
    """Addresses of the local stack, by setting name; empty if it is not up or cannot be read."""
    try:
        return dict(json.loads(stack_file(home).read_text())["addresses"])
    except NotADirectoryError:
        raise LensError(f"LENS_HOME={home} is a file: name a folder, which is made when there is none") from None
    except (OSError, ValueError, KeyError, TypeError):
        # `lens up` and `lens down` repair a damaged file: do not fail here.
        return {}


def load_settings(**overrides: Any) -> Settings:
    """Read the settings.

    Raises:
        LensError: a value that does not fit, by its name, or an unknown ``LENS_`` variable.
    """
    known = {f"LENS_{name.upper()}" for name in Settings.model_fields}
    unknown = sorted(name for name in os.environ if name.startswith("LENS_") and name not in known)
    if unknown:
        raise LensError(f"{unknown[0]} is not a setting: see listing_lens/defaults.toml for the names")
    try:
        return Settings(**overrides)
    except SettingsError as err:
        name = str(err).split('"')[1]
        raise LensError(f"setting LENS_{name.upper()}: not JSON, which lists and tables are written as") from None
    except ValidationError as err:
        first = err.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        # What may hold a password is not repeated.
        given = "" if name.endswith(("_url", "_key", "_generator")) else f" (given: {first['input']!r})"
        raise LensError(f"setting LENS_{name.upper()}: {first['msg']}{given}") from None


def missing(setting: str, remedy: str) -> NoReturn:
    """Refuse to go on without a setting."""
    raise LensError(f"LENS_{setting.upper()} is not set and no local stack is up: {remedy}")
