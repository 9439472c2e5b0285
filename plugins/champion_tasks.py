"""The task that follows the champion: what a run decides, and the names of the runs that it starts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING

from airflow.sdk import get_current_context, task

from listing_lens.settings import load_settings

if TYPE_CHECKING:
    from models.registry import PromotionMove

REBUILD, ROLLBACK = "rebuild_index", "rollback_index"
_ACTIVE = ("queued", "running")

# How many runs of these DAGs have one of these ids, in one of these states; None is any state.
Count = Callable[[Sequence[str], Sequence[str], Sequence[str] | None], int]

logger = logging.getLogger(__name__)


@task.branch
def decide() -> str | None:
    """Keep the champion's move, and decide what brings it live. Returns the task that starts it; None if nothing follows.

    The state of the registry and the cluster decides, as it is now, never the event that started the run. What the task that
    follows needs is pushed as `run_id` and `index`.
    """
    from listing_lens import registration

    context = get_current_context()
    settings = load_settings()
    at = registration.standing(settings)
    told = registration.tell_move(at, settings, datetime.now(UTC))
    follows = at.follows
    if told is None or follows is None:
        logger.info("nothing follows: %s", "the live index is the champion's" if told else "there is no champion")
        return None
    run_id = _name_run(told, context["dag_run"].run_type != "asset_triggered", _count_runs)
    if run_id is None:
        return None
    context["ti"].xcom_push("run_id", run_id)
    context["ti"].xcom_push("index", follows.index)
    return REBUILD if follows.kind == "rebuild" else ROLLBACK


def _name_run(move: PromotionMove, by_hand: bool, runs: Count) -> str | None:
    """The id of the run that follows a move; None if none should.

    A move is followed once. By hand it is followed again, unless a run that follows it is still active.
    """
    name = f"champion__v{move.version}__{move.key}"
    followers = (REBUILD, ROLLBACK)
    for number in count(1):
        run_id = name if number == 1 else f"{name}__{number}"
        if not runs(followers, [run_id], None):
            return run_id
        if runs(followers, [run_id], _ACTIVE):
            logger.info("run %s follows the move already: it is queued or running", run_id)
            return None
        if not by_hand:
            logger.warning(
                "run %s followed the move and is over: clear its failed task, or trigger this DAG by hand to start another",
                run_id,
            )
            return None
    return None


def _count_runs(dag_ids: Sequence[str], run_ids: Sequence[str], states: Sequence[str] | None) -> int:
    ti = get_current_context()["ti"]
    return sum(
        ti.get_dr_count(dag_id, run_ids=list(run_ids), states=list(states) if states else None) for dag_id in dag_ids
    )
