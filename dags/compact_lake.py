"""
### Compact the lake

Moves the embeddings of many small windows to a few large files, so that a projection is fitted and an index is loaded at
full speed. Every window stays what it is, and where it is found, all the time.

**When.** Weekly, or by hand, e.g. after a backfill of hourly windows.

**What.** `compact` packs, for every encoder, the windows whose files are all smaller than `smaller_than`, and replaces
their manifests by ones that name the packs, one after the other, while others read and write as ever. A window that is
embedded again meanwhile stays what that made it. Nothing is loaded or embedded again for it. Files that no window has
consisted of for two days are removed.

**When it fails.** Every window can be read, from its files or from a pack. Clear the task to go on: it packs what is left.
*A file is gone*: it was removed by hand; embed its window again.

**Must not race with** nothing: it may run beside every other DAG. A job that reads for more than two days may miss files.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, Param

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
        "smaller_than": Param(
            64, type="number", minimum=0, description="Megabytes from which on a file stays as it is."
        ),
    },
    # Params reach the tasks as what they are: None rather than text.
    render_template_as_native_obj=True,
    tags=["embedding"],
):
    BeamJobOperator(
        task_id="compact",
        job="compact_embeddings",
        arguments={"encoder": "{{ params.encoder }}", "smaller_than": "{{ params.smaller_than }}"},
    )
