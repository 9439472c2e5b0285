"""
### Compact the lake

Rewrites the many small files of the embeddings' tables as a few large ones, so that fitting a projection and loading an index
run at full speed, and removes what nobody reads any more.

**When.** Weekly, or by hand, e.g. after a backfill of hourly windows.

**What.** `compact` takes the tables of every encoder, or of the one that was asked for: items, ledger and dead letters. Small
files, and those with many replaced rows, become files of a million rows, each in its own commit. Rows that move do not count
as changed: no index loads them again. Before that, items that were sold or deleted more than `LENS_LAKE_REMOVED_DAYS` ago are
deleted from the tables; afterwards versions of a table older than `LENS_LAKE_RETENTION_DAYS` are forgotten, with the
files that only they had, and so is whatever embedding runs had staged before they died, two days after they began. Searches
that the service logged are forgotten first, as by `forget_searches`, which does only that, daily. Finally the job checks that
no key is in a table twice.

**When it fails.** Every commit that was made stays, and every row can be read. Clear the task to continue with what is left.
*The lock was held by another process*: a job that commits to the table hangs; end it. *A table holds an item twice*: something
other than these jobs has written it. Go back to an earlier version, in Python with
`lance.dataset("…/items.lance", version=41).restore()`, and embed again what came after it.

**May run beside** everything: commits take turns, so that an embedding run waits for one large file at most. A job that reads
one version for longer than `LENS_LAKE_RETENTION_DAYS` may miss files, and an evaluation cannot be repeated after that time.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG

from plugins.operators.beam_job import BeamJobOperator
from plugins.tasks import encoder_param, first_day

with DAG(
    dag_id="compact_lake",
    doc_md=__doc__,
    schedule="@weekly",
    start_date=first_day(),
    catchup=False,
    max_active_runs=1,
    default_args={
        "owner": "search",
        "retries": 2,
        "retry_delay": timedelta(minutes=5),
        "execution_timeout": timedelta(hours=12),
    },
    params={
        "encoder": encoder_param("Compact the embeddings of this encoder alone; empty is all"),
    },
    # Params reach the tasks as what they are: None rather than text.
    render_template_as_native_obj=True,
    tags=["embedding"],
):
    BeamJobOperator(task_id="compact", job="compact_lake", arguments={"encoder": "{{ params.encoder }}"})
