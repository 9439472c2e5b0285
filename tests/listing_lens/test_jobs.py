"""Jobs as the terminal runs them: their sentence comes up, their log is kept, and no process of theirs is left behind.

The jobs here are small programs in a package of the name that jobs live in, found first because they lie in the current
folder; one case runs a real job.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from listing_lens import process_group
from listing_lens.errors import LensError
from listing_lens.jobs import run_job
from listing_lens.progress import Progress
from listing_lens.settings import Settings, load_settings

# A process that would live for an hour and is not impressed by being asked to end.
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(3600)"
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(home=tmp_path / "home", lake=str(tmp_path / "lake"))


@pytest.fixture
def write_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a job of this code; returns its name."""
    package = tmp_path / "beam_jobs"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.chdir(tmp_path)

    def write(code: str) -> str:
        (package / "job_of_this_test.py").write_text(code)
        return "job_of_this_test"

    return write


def log_of(settings: Settings) -> str:
    (log,) = (settings.home / "logs" / "jobs").iterdir()
    return log.read_text()


def ended(pid: int) -> bool:
    """Whether a process has ended, or does soon: it was killed, and what is left is up to the system."""
    try:
        psutil.Process(pid).wait(300)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


def test_a_job_gets_its_arguments_and_the_settings(
    settings: Settings, write_job: Callable[[str], str], tmp_path: Path
) -> None:
    name = write_job("import json, os, sys; json.dump([sys.argv[1:], dict(os.environ)], open('seen.json', 'w'))")
    run_job(name, ["--title", "a b; $(c)"], settings)
    arguments, environment = json.loads((tmp_path / "seen.json").read_text())
    assert arguments == ["--title", "a b; $(c)"]
    assert settings.environment.items() <= environment.items()


def test_its_progress_is_told_and_its_log_is_kept(settings: Settings, write_job: Callable[[str], str]) -> None:
    name = write_job(
        "import sys; from listing_lens.progress import Progress\n"
        "print('first', Progress('embed', 1, 2), file=sys.stderr)\n"
        "print(Progress('embed', 2, 2)); print(b'caf\\xc3\\xa9'.decode())"
    )
    told: list[Progress] = []
    run_job(name, [], settings, told.append)
    assert sorted(told, key=lambda progress: progress.done) == [Progress("embed", 1, 2), Progress("embed", 2, 2)]
    assert {"first progress: embed: 1 of 2", "progress: embed: 2 of 2", "café"} <= set(log_of(settings).splitlines())


def test_a_job_that_talks_a_lot_on_both_streams_comes_to_its_end(
    settings: Settings, write_job: Callable[[str], str]
) -> None:
    name = write_job(
        "import sys\n"
        "for n in range(3000): print('o' * 100); print('e' * 100, file=sys.stderr)\n"
        "sys.stdout.buffer.write(b'\\xff\\n')"
    )
    run_job(name, [], settings)
    assert len(log_of(settings)) > 600_000


class TestFailure:
    def test_of_a_job_that_says_why_is_its_sentence(self, settings: Settings, write_job: Callable[[str], str]) -> None:
        name = write_job("import sys; print('starting', flush=True); sys.exit('error: the lake is dry: fill it')")
        with pytest.raises(LensError, match="^the lake is dry: fill it$"):
            run_job(name, [], settings)
        assert "error: the lake is dry" in log_of(settings)

    def test_of_a_job_that_does_not_is_the_end_of_its_log(
        self, settings: Settings, write_job: Callable[[str], str]
    ) -> None:
        name = write_job("for n in range(99): print(f'line {n}', flush=True)\n1 / 0")
        with pytest.raises(LensError, match=r"failed \(exit 1\); its log is .*\.log:") as failure:
            run_job(name, [], settings)
        assert "ZeroDivisionError" in str(failure.value)
        assert "line 98" in str(failure.value)
        assert "line 50" not in str(failure.value)

    def test_of_a_job_that_was_killed_is_a_failure(self, settings: Settings, write_job: Callable[[str], str]) -> None:
        name = write_job(
            "import os; print('error: not this', flush=True); print('x\\n' * 20, flush=True); os.kill(os.getpid(), 9)"
        )
        with pytest.raises(LensError, match=r"failed \(exit -9\)"):
            run_job(name, [], settings)

    def test_of_a_real_job_is_its_sentence(self, settings: Settings) -> None:
        with pytest.raises(LensError, match=r"^encoder '/no/such/folder' is neither a folder nor a model"):
            run_job("fit_projection", ["--name", "test", "--encoder", "/no/such/folder"], settings)


class TestInterruption:
    @pytest.mark.parametrize("stubborn", [False, True], ids=["a job that ends when asked", "a job that does not"])
    def test_leaves_no_process_of_the_job(
        self, settings: Settings, write_job: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, stubborn: bool
    ) -> None:
        monkeypatch.setattr(process_group, "GRACE_S", 1)
        name = write_job(
            "import os, signal, subprocess, sys, time\n"
            + ("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if stubborn else "")
            + f"child = subprocess.Popen([sys.executable, '-c', {STUBBORN!r}], stdout=subprocess.PIPE)\n"
            "child.stdout.readline()\n"
            "print(f'progress: started: {os.getpid()} of {child.pid}', flush=True)\n"
            "time.sleep(3600)\n"
        )
        pids: list[int] = []

        def interrupt(progress: Progress) -> None:
            assert progress.total is not None
            pids.extend([progress.done, progress.total])
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_job(name, [], settings, interrupt)
        assert len(pids) == 2
        assert all(ended(pid) for pid in pids)
