"""Airflow's home folder: its configuration, its secrets, and the password of its one user."""

from __future__ import annotations

import json
import secrets
from configparser import ConfigParser
from pathlib import Path

from cryptography.fernet import Fernet

import listing_lens
from listing_lens.errors import LensError
from listing_lens.stack.airflow_components import DATABASE
from listing_lens.stack.database import address
from listing_lens.stack.private_file import write_private

CHECKOUT = Path(listing_lens.__file__).parent.parent
USER = "admin"
# Concurrent tasks; a Beam job or a model uses several cores by itself.
_PARALLEL_TASKS = 4


def password_file(home: Path) -> Path:
    """Where the password of USER is; ``home`` is the stack's."""
    return home / "airflow" / "password.json"


def read_password(home: Path) -> str:
    try:
        return str(json.loads(password_file(home).read_text())[USER])
    except FileNotFoundError:
        raise LensError(f"{password_file(home)} does not exist: start Airflow with `lens up`") from None


def write_airflow_home(home: Path, port: int) -> Path:
    """Write the configuration for a port, and return AIRFLOW_HOME. Secrets and the password are made once.

    It is a file rather than the environment so that `AIRFLOW_HOME=… airflow …` in a terminal means this Airflow.
    """
    folder = home / "airflow"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    if not password_file(home).exists():
        write_private(password_file(home), json.dumps({USER: secrets.token_urlsafe(24)}) + "\n")
    file = folder / "airflow.cfg"
    # A "%" in a path is read as it is here, and written doubled, since Airflow interpolates.
    before = ConfigParser(interpolation=None)
    before.read(file)
    url = f"http://127.0.0.1:{port}"
    sections = {
        "core": {
            "dags_folder": str(CHECKOUT / "dags"),
            "plugins_folder": str(CHECKOUT / "plugins"),
            "load_examples": "False",
            "executor": "LocalExecutor",
            "parallelism": str(_PARALLEL_TASKS),
            "execution_api_server_url": f"{url}/execution/",
            "simple_auth_manager_users": f"{USER}:admin",
            "simple_auth_manager_passwords_file": str(password_file(home)),
            "fernet_key": before.get("core", "fernet_key", fallback=Fernet.generate_key().decode()),
        },
        "database": {"sql_alchemy_conn": address(folder / DATABASE), "load_default_connections": "False"},
        "api": {
            "host": "127.0.0.1",
            "port": str(port),
            "base_url": url,
            "workers": "1",
            "expose_config": "False",
            "secret_key": before.get("api", "secret_key", fallback=secrets.token_urlsafe(32)),
        },
        "api_auth": {"jwt_secret": before.get("api_auth", "jwt_secret", fallback=secrets.token_urlsafe(64))},
        "dag_processor": {
            # Seconds until a new file is seen; a changed one is then parsed at once, an unchanged one every 30.
            "refresh_interval": "10",
            "min_file_process_interval": "30",
            "parsing_processes": "1",
        },
    }
    write_private(file, "\n".join(_section(name, values) for name, values in sections.items()))
    return folder


def own_variables(folder: Path) -> tuple[str, ...]:
    """The environment variables that would override the configuration."""
    written = ConfigParser(interpolation=None)
    written.read(folder / "airflow.cfg")
    options = (f"AIRFLOW__{section}__{option}" for section in written.sections() for option in written[section])
    return ("AIRFLOW_HOME", "AIRFLOW_CONFIG", *(option.upper() for option in options))


def _section(name: str, values: dict[str, str]) -> str:
    lines = (f"{key} = {value.replace('%', '%%')}" for key, value in values.items())
    return "\n".join((f"[{name}]", *lines, ""))
