"""
### Rebuild the index

Builds a new index for an embedder and, once it is verified, moves the alias to it.

**When.** `follow_champion` triggers it when the alias `champion` was moved in MLflow, by a person or by `refit_projection`; or by
hand, e.g. after a change of the settings `LENS_INDEX_…`.

**What.** `begin_build` takes the lock of builds, looks the embedder up in MLflow and makes an empty index that names its space,
or goes on with one that an earlier build of that space left unfinished. `embed_missing` embeds what has landed and the
embedder's encoder has not embedded yet: the newest windows first, and only the newest version of each item; from now on
`embed_new_listings` embeds new windows with it as well. `load` projects and writes the newest version of every item, in parts
that are recorded: another try goes on where the last one stopped. `finish_load` gives the index its replicas and refreshes it,
and `wait_for_merge` waits for its segments to be merged, if `LENS_INDEX_SEGMENTS` asks for that. `catch_up` loads what was
embedded meanwhile, until nothing is left. `verify` compares the index with the lake and tries it out (`LENS_VERIFY_…`), and
`log_verification` puts the report into MLflow. `catch_up_again` loads what was embedded during the verification. `replay`
brings in what was put to the search service before the index was there, or told by a queue, and has not landed since. `swap`
moves the alias in one request: searches see the old index or the new one, never both or neither. `retire` removes indexes that
are no longer needed for rollback (`LENS_INDEX_KEEP_…`), and what failed builds left. `give_up` runs only if a task failed for
good: it frees the lock.

**When it fails.** The alias has not moved, and readers noticed nothing. Clear the failed task to continue. *Another build is
running*: wait for it, or trigger with `wait`. *The verification failed*: its message and page say which checks; mend the cause
and clear the task, or trigger again with `force_checks`, which is recorded. *The champion, or the alias, was moved since*: the
build is of yesterday's embedder; trigger again. *The build is kept, failed or retired*: this run is over, trigger a new one.
`lens index show` has the build's record.

**Must not race with** another rebuild or rollback: the lock, which `lens index rebuild` takes too, sees to that. It may run
beside every other DAG: `embed_new_listings` and `redrive_dead_letters` feed the new index once it is loaded.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, Param

from plugins.tasks import (
    begin_build,
    catch_up_and_verify,
    embed_missing,
    embedder_param,
    finish_load,
    first_day,
    force_checks_param,
    force_swap_param,
    give_up,
    load_build,
    retire,
    swap,
    wait_for_merge,
    wait_param,
)

with DAG(
    dag_id="rebuild_index",
    doc_md=__doc__,
    schedule=None,
    start_date=first_day(),
    catchup=False,
    max_active_runs=1,
    default_args={
        "owner": "search",
        "retries": 2,
        "retry_delay": timedelta(minutes=1),
        "execution_timeout": timedelta(hours=12),
    },
    params={
        "model": embedder_param("whose index is built"),
        "afresh": Param(
            False, type="boolean", description="Begin a new index, also where an unfinished one could be gone on with."
        ),
        "unless_live": Param(
            False, type="boolean", description="End at once if the live index is of that embedder already."
        ),
        "wait": wait_param(),
        "force_checks": force_checks_param(),
        "force_swap": force_swap_param(),
    },
    # Params reach the tasks as what they are: booleans and lists rather than text.
    render_template_as_native_obj=True,
    tags=["index"],
):
    build = begin_build("{{ params.model }}", "{{ params.afresh }}", "{{ params.unless_live }}", "{{ params.wait }}")
    index = build["index"]
    load = load_build("load", build)
    merge = finish_load(index)
    catch_up, caught_up = catch_up_and_verify(build)
    retired = retire()

    # The index exists before its encoder is asked what it lacks: what lands from then on is embedded by `embed_new_listings`.
    embed_missing(build) >> load >> merge >> wait_for_merge(index, merge) >> catch_up
    # The alias moves only to an index that has earned it.
    caught_up >> swap(index, "{{ params.force_swap }}") >> retired
    retired >> give_up(build)
