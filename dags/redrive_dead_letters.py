"""
### Re-drive dead letters

Tries to embed the listings again that could not be embedded, once what kept them from it may have passed.

**When.** Hourly. A listing whose photo's server did not answer, or took too long, is due 15 minutes after its first try, and
after a pause that doubles with each further one, eight tries in all. Other failures, e.g. a file that is no picture, stay
until somebody asks: after an image server was repaired for good, or its address was added to `LENS_IMAGE_SOURCES`, run it by
hand with `{"all": true}`, which tries every letter, whatever its reason. `lens lake dead-letters` lists them.

**What.** `find_due` finds the encoders in use, or takes the one that is asked for, of which letters are to be tried now. When
there are none, all that follows is skipped. `redrive` runs once for each encoder: what succeeds comes into its table in one
commit, and its letter goes; what fails again keeps its letter, with the new reason. A letter of a listing that has a newer
version by now goes without a try. `load_indexes` brings what succeeded into every index of these encoders.

**When it fails.** Letters that were not tried stay due, and are tried by the next run: mostly there is nothing to do. *An
encoder cannot be loaded*: restore it; or, if only an index that is no longer needed is of it, remove that with
`lens index delete`.

**May run beside** everything: commits to a table take turns, and the newest version of a listing wins.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, Param

from plugins.operators.beam_job import BeamJobOperator
from plugins.tasks import encoder_param, find_due, first_day

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
    load_indexes = BeamJobOperator(
        task_id="load_indexes", job="load_index", arguments={"encoder": "{{ params.encoder }}"}
    )

    redrive >> load_indexes
