"""
### Evaluate offline

Measures how well an embedder ranks what buyers were shown: nDCG, precision and recall at k over the search sessions of a
day, by what they tapped.

**When.** Nightly, for the day before, in UTC. To replay days, run a backfill:

    airflow backfill create --dag-id evaluate_offline --from-date 2026-01-30 --to-date 2026-01-31 --reprocess-behavior completed

A day that is replayed, or evaluated with another projection, is judged by the encoder's embeddings as they were at its first
evaluation, so that results can be repeated and compared. These are kept for `LENS_LAKE_RETENTION_DAYS`. With
`--dag-run-conf '{"afresh": true}'` the embeddings are taken as they are now.

**What.** `require_window` checks the data interval. `resolve_embedder` looks the version up in MLflow. `evaluate` embeds
the query photos, ranks the items that were shown, by the encoder alone and with the projection, with all and with fewer of its
dimensions, and writes metrics to the lake. `log_evaluation` logs their means to MLflow with figures and a report page.
An item is judged by the newest embedding that it had since the day began, also when it has been sold since. Sessions without a
tap, with an unreadable photo, or with an item that was never embedded are left out, and counted by reason.

**When it fails.** *Sessions have not landed*: see what feeds the lake. *No session can be judged*: the items that were
shown are not embedded; run `embed_new_listings` for their windows. *A version is no longer kept*: run it with `afresh`.

**May run beside** everything: it reads, and writes only its own results.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, Param
from airflow.timetables.interval import CronDataIntervalTimetable

from plugins.operators.beam_job import BeamJobOperator
from plugins.tasks import WINDOW_ARGUMENTS, embedder_param, first_day, log_evaluation, require_window, resolve_embedder

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
    embedder = resolve_embedder("{{ params.model }}")
    evaluate = BeamJobOperator(
        task_id="evaluate",
        job="evaluate_sessions",
        arguments=WINDOW_ARGUMENTS | {"card": embedder["card"], "afresh": "{{ params.afresh }}"},
    )

    window >> embedder >> evaluate >> log_evaluation(embedder)
