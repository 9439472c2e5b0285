"""The stack file: private, whole or absent, and never a reason for not starting."""

import threading
from pathlib import Path

import pytest

from listing_lens.settings import running_stack, stack_file
from listing_lens.stack.private_file import write_private
from listing_lens.stack.state import ProcessRecord, StackState, stack_lock

STATE = StackState(
    addresses={"mlflow_url": "http://127.0.0.1:5000"},
    processes={"mlflow": ProcessRecord(pid=1, created=2.5, port=5000)},
)


def test_it_is_read_as_written_and_gives_the_settings_their_addresses(tmp_path: Path) -> None:
    STATE.save(tmp_path)
    assert StackState.load(tmp_path) == STATE
    assert running_stack(tmp_path) == {"mlflow_url": "http://127.0.0.1:5000"}
    assert stack_file(tmp_path).stat().st_mode & 0o777 == 0o600


def test_without_processes_there_is_no_file(tmp_path: Path) -> None:
    STATE.save(tmp_path)
    StackState().save(tmp_path)
    assert not stack_file(tmp_path).exists()


@pytest.mark.parametrize("content", ["", "{", '{"addresses": 3}'], ids=["empty", "cut off", "other shape"])
def test_an_unreadable_file_is_an_empty_state(tmp_path: Path, content: str) -> None:
    stack_file(tmp_path).write_text(content)
    assert StackState.load(tmp_path) == StackState()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_private(tmp_path / "a", "old")
    monkeypatch.setattr("os.fsync", lambda _handle: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_private(tmp_path / "a", "new")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a", "old")]


def test_the_second_waits_for_the_first_and_says_so(tmp_path: Path) -> None:
    waits = threading.Event()
    order: list[str] = []

    def second() -> None:
        with stack_lock(tmp_path, on_wait=waits.set):
            order.append("second")

    with stack_lock(tmp_path, on_wait=lambda: pytest.fail("nobody else is there")):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
