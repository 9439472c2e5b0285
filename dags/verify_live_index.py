"""
### Verify the live index

Compares the live index with the lake every night, mends what differs, and fails where that is not enough.

**When.** Nightly, at 03:00 UTC, or by hand.

**What.** `find_live` looks up the index behind the alias; without one, the rest is skipped. `verify` puts it to the checks that
it had to pass before it went live (`LENS_VERIFY_…`): every item is looked up, both ways, and a sample is searched for. With
`repair`, up to 10,000 items that differ are written again from the lake, what the lake does not hold is deleted, and all is
verified once more. `log_verification` puts the report into MLflow, also when the verification failed. `retire` removes indexes
that are no longer needed for rollback (`LENS_INDEX_KEEP_…`), and what failed builds left.

**When it fails.** *The verification failed*: the message and the page in MLflow say which checks, with examples. What could be
mended was; a check that fails all the same needs a person: see docs/index.md, and rebuild or roll back if in doubt. Readers
are served as before.

**May run beside** everything: what is written while it runs is newer than what it compares with.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, Param

from plugins.operators.beam_job import BeamJobOperator
from plugins.tasks import find_live, first_day, log_verification, retire

with DAG(
    dag_id="verify_live_index",
    doc_md=__doc__,
    schedule="0 3 * * *",
    start_date=first_day(),
    catchup=False,
    max_active_runs=1,
    default_args={
        "owner": "search",
        "retries": 1,
        "retry_delay": timedelta(minutes=10),
        "execution_timeout": timedelta(hours=6),
    },
    params={
        "repair": Param(
            True, type="boolean", description="Write what differs again from the lake, and verify once more."
        ),
    },
    # Params reach the tasks as what they are: booleans rather than text.
    render_template_as_native_obj=True,
    tags=["index"],
):
    index = find_live()
    verify = BeamJobOperator(
        task_id="verify", job="verify_index", arguments={"index": index, "repair": "{{ params.repair }}"}
    )
    # A report of failure is read more often than one of success.
    logged = log_verification.override(trigger_rule="all_done")(index)

    verify >> logged
    # What is not needed goes only while what is live is sound.
    verify >> retire()
