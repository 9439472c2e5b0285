"""
### Evaluate offline

Measures how well an embedder ranks what buyers were shown: nDCG, precision and recall at k over the search sessions of a
day, by what they tapped.

**When.** Nightly, for the day before, in UTC. To replay days, run a backfill:

    airflow backfill create --dag-id evaluate_offline --from-date 2026-01-30 --to-date 2026-01-31 --reprocess-behavior completed

A day that is replayed, or evaluated with another projection, is judged by the encoder's embeddings as they were at its first
evaluation, so that results can be repeated and compared. These are kept for `LENS_LAKE_RETENTION_DAYS`. With
`--dag-run-conf '{"afresh": true}'` the embeddings are taken as they are now.

The sessions of a day come from the search service's log, an hour after midnight, so that what was shown last may still be
tapped; or from your own feed, or a made catalog, which the log never replaces. Searches, their photos and their sessions are
forgotten after `LENS_SEARCH_LOG_DAYS`: days before that cannot be replayed.

**What.** `require_window` checks the data interval. `wait_for_log` waits until the hour is over, and `land_sessions` joins
searches by photo or words with what was tapped of what they showed: a tap or a purchase counts, a view of an item's page
does not.
Events of searches that are not known, and of items that they did not show, are left out and counted. Both are skipped if the
day's sessions came from elsewhere, or nothing was logged. `resolve_embedder` looks the version up in MLflow. `evaluate` embeds
the queries, ranks the items that were shown, by the encoder alone and with the projection, with all and with fewer of its
dimensions, and writes metrics to the lake. `log_evaluation` logs their means to MLflow with figures and a report page.
An item is judged by the newest embedding that it had since the day began, also when it has been sold since. Sessions without a
tap, with an unreadable photo, or with an item that was never embedded are left out, and counted by reason.

**When it fails.** *Sessions have not landed*: nothing was logged either; see what feeds the lake, and whether the service
writes to the same one. *Searches are forgotten*: the day is too old. *A line of the log is not JSON*: remove the file that the
message names, or mend it, and clear `land_sessions`. *No session can be judged*: the items that were
shown are not embedded; run `embed_new_listings` for their windows. *A version is no longer kept*: run it with `afresh`.

**May run beside** everything: it reads, and writes only sessions that the log tells of, and its own results.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, Param
from airflow.timetables.interval import CronDataIntervalTimetable

from plugins.operators.beam_job import BeamJobOperator
from plugins.tasks import (
    WINDOW_ARGUMENTS,
    embedder_param,
    first_day,
    log_evaluation,
    require_window,
    resolve_embedder,
    wait_for_log,
)

with DAG(
    dag_id="evaluate_offline",
    doc_md=__doc__,
    schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),
    start_date=first_day(),
    catchup=False,
    max_active_runs=1,
    default_args={
        "owner": "search",
        "retries": 2,
        "retry_delay": timedelta(minutes=5),
        "execution_timeout": timedelta(hours=4),
    },
    params={
        "model": embedder_param("that is evaluated"),
        "afresh": Param(
            False,
            type="boolean",
            description="Take the embeddings as they are now, also of a day that was evaluated before.",
        ),
    },
    # Params reach the tasks as what they are: booleans rather than text.
    render_template_as_native_obj=True,
    tags=["evaluation"],
):
    window = require_window()
    land_sessions = BeamJobOperator(task_id="land_sessions", job="land_sessions", arguments=WINDOW_ARGUMENTS)
    embedder = resolve_embedder("{{ params.model }}")
    evaluate = BeamJobOperator(
        task_id="evaluate",
        job="evaluate_sessions",
        arguments=WINDOW_ARGUMENTS | {"card": embedder["card"], "afresh": "{{ params.afresh }}"},
        # Sessions that came from elsewhere are evaluated as well.
        trigger_rule="none_failed",
    )

    window >> wait_for_log() >> land_sessions >> evaluate
    window >> embedder >> evaluate >> log_evaluation(embedder)
