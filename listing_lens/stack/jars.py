"""Elasticsearch's jars: fetched once per machine into a flat folder, and never used without a check of their checksum.

`elasticsearch-<version>.sha256` names every jar by its path in a Maven repository. To move to another version, change
VERSION and write the file anew: `python -m listing_lens.stack.jars > listing_lens/stack/elasticsearch-<version>.sha256`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from filelock import FileLock

from listing_lens.errors import LensError

VERSION = "9.2.2"
CHECKSUMS = Path(__file__).with_name(f"elasticsearch-{VERSION}.sha256")
_ENDPOINT = f"org.elasticsearch:elasticsearch:{VERSION}+org.elasticsearch.plugin:transport-netty4:{VERSION}"
_DOWNLOADS_AT_ONCE = 8


def jar_folder(cache: Path) -> Path:
    return cache / f"elasticsearch-{VERSION}"


def checksums(file: Path = CHECKSUMS) -> dict[PurePosixPath, str]:
    """SHA-256 by path in a Maven repository."""
    lines = (line.split() for line in file.read_text().splitlines())
    return {PurePosixPath(path): digest for digest, path in lines}


def ensure_jars(
    cache: Path, wanted: dict[PurePosixPath, str] | None = None, on_fetch: Callable[[int], None] = lambda count: None
) -> list[Path]:
    """The jars, verified by checksum; missing or altered ones are fetched again.

    Args:
        cache: folder shared by the checkouts of this machine.
        wanted: checksums by path; those of the project's file when None.
        on_fetch: called with the number of jars to be fetched, if any.

    Raises:
        LensError: a jar cannot be fetched, or what was fetched is not what it should be.
    """
    wanted = checksums() if wanted is None else wanted
    folder = jar_folder(cache)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        bad = {path: digest for path, digest in wanted.items() if sha256(folder / path.name) != digest}
        if bad:
            on_fetch(len(bad))
            with tempfile.TemporaryDirectory(dir=folder) as part:
                _fetch(bad, Path(part), folder)
    return [folder / path.name for path in wanted]


def sha256(file: Path) -> str | None:
    """Hex digest of a file; None if there is no file."""
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _fetch(wanted: dict[PurePosixPath, str], part: Path, folder: Path) -> None:
    from jgo.config import GlobalSettings
    from jgo.constants import MAVEN_CENTRAL_URL
    from jgo.maven import MavenContext

    # A mirror is taken from jgo's own settings file; what it serves must match the checksums.
    mirrors = GlobalSettings.load().repositories
    maven = MavenContext(
        repo_cache=part, local_repos=[], remote_repos={**mirrors, "central": MAVEN_CENTRAL_URL}, timeout=60
    )

    def fetch_one(path: PurePosixPath) -> None:
        *group, artifact, version, name = path.parts
        try:
            fetched = maven.project(".".join(group), artifact).at_version(version).artifact().resolve()
        except (OSError, RuntimeError) as err:
            raise LensError(f"cannot fetch {name}: {err}; check the network, or put the jar into {folder}") from err
        if sha256(fetched) != wanted[path]:
            raise LensError(f"{name} as fetched does not match its checksum in {CHECKSUMS.name}: it is not used")
        os.replace(fetched, folder / name)

    with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE) as pool:
        list(pool.map(fetch_one, wanted))


def resolve_checksums() -> dict[PurePosixPath, str]:
    """The jars of VERSION, resolved from the published metadata."""
    from jgo.env import EnvironmentBuilder
    from jgo.maven import MavenContext

    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder, "repository")
        EnvironmentBuilder(context=MavenContext(repo_cache=repository), cache_dir=Path(folder, "cache")).from_endpoint(
            _ENDPOINT
        )
        jars = sorted(repository.rglob("*.jar"))
        return {PurePosixPath(jar.relative_to(repository).as_posix()): str(sha256(jar)) for jar in jars}


if __name__ == "__main__":
    # jgo compares with the published SHA-1 and says so only in its log.
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    for jar_path, jar_digest in resolve_checksums().items():
        print(f"{jar_digest}  {jar_path}")
