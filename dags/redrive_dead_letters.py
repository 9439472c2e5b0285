"""
### Re-drive dead letters

Tries again to embed the listings that could not be embedded, once the cause may have passed.

**When.** Hourly. A listing whose photo server did not answer, or took too long, is due 15 minutes after the first try; the
pause doubles with each further one, and there are eight tries in all. Other failures, e.g. a file that is no picture, stay
until somebody asks: when an image server was repaired, or its address was added to `LENS_IMAGE_SOURCES`, run this by hand with
`{"all": true}`, which tries every letter of a listing, whatever the reason. `lens lake dead-letters` lists them.

**What.** `find_due` finds the encoders in use, or takes the one that was asked for, and keeps those with letters to try now. If
there are none, everything that follows is skipped. `redrive` runs once for each encoder: what succeeds comes into the table in
one commit, and its letter goes; what fails again keeps its letter, with the new reason. A letter whose listing has a newer
version by now goes without a try. `load_live` brings what succeeded into the live index; `load_others` does so for each of the
others that `find_other_indexes` finds, which may fail alone. `require_live_is_fed` ends the run as `load_live` did.

**When it fails.** Letters that were not tried stay due, and the next run tries them: usually there is nothing to do. *An
encoder cannot be loaded*: restore it; or, if it only belongs to an index that is no longer needed, remove that index with
`lens index retire`.

**May run beside** everything: commits to a table take turns, and the newest version of a listing wins.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, Param

from plugins.operators.beam_job import BeamJobOperator
from plugins.tasks import encoder_param, feed_indexes, find_due, first_day

with DAG(
    dag_id="redrive_dead_letters",
    doc_md=__doc__,
    schedule="@hourly",
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
        "encoder": encoder_param("Try the letters of this encoder alone; empty is every one in use"),
        "all": Param(
            False,
            type="boolean",
            description="Also letters that will not pass by themselves, that were tried too often, or too lately.",
        ),
    },
    # Params reach the tasks as what they are: booleans and None rather than text.
    render_template_as_native_obj=True,
    tags=["embedding", "index"],
):
    due = find_due("{{ params.encoder }}", "{{ params.all }}")
    redrive = BeamJobOperator.partial(task_id="redrive", job="redrive_dead_letters").expand(arguments=due)
    load_live, _ = feed_indexes("{{ params.encoder }}")

    redrive >> load_live
