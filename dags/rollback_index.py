"""
### Roll the index back

Moves the alias back to an index that was kept, after bringing it up to date.

**When.** By hand, when the live index turns out to be worse than the one before; or triggered by `follow_champion`, when the
alias `champion` was moved in MLflow to an embedder whose index is still kept.

**What.** `begin_rollback` takes the lock of builds for a kept index: the named one, or the one that was live last. A kept index
has received new listings all the time; `embed_missing` embeds, and `catch_up` loads, what it may lack. `verify` puts it to the
same checks as a new one, and `log_verification` puts the report into MLflow. `catch_up_again` loads what was embedded meanwhile.
`replay` brings in what was put to the search service, or told by a queue, has not landed yet and did not reach the index.
`promote_build` makes the index's embedder the champion again, since the champion is what should serve. `swap` moves the alias
in one request. The index that was live is kept. `give_up` runs only if a task failed for good: it frees the lock, and the index
stays kept.

**When it fails.** The alias has not moved. *No index is kept*: rebuild instead, for the earlier version. *The verification
failed*: see its message and page; to go back all the same, trigger with `force_checks`, which is recorded. To try again, clear
`begin_rollback` with what follows: the index was given back, and is taken up anew.

**Must not race with** another rebuild or rollback: the lock, which `lens index rollback` takes too, sees to that. It may run
beside every other DAG.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG

from plugins.tasks import (
    begin_rollback,
    catch_up_and_verify,
    embed_missing,
    first_day,
    force_checks_param,
    force_swap_param,
    give_up,
    optional_param,
    promote_build,
    swap,
    wait_param,
)

with DAG(
    dag_id="rollback_index",
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
        "index": optional_param(
            "string", minLength=1, description="The kept index, by its full name; empty is the one that was live last."
        ),
        "wait": wait_param(),
        "force_checks": force_checks_param(),
        "force_swap": force_swap_param(),
    },
    # Params reach the tasks as what they are: booleans, lists and None rather than text.
    render_template_as_native_obj=True,
    tags=["index"],
):
    build = begin_rollback("{{ params.index }}", "{{ params.wait }}")
    index = build["index"]
    catch_up, caught_up = catch_up_and_verify(build)
    swapped = swap(index, "{{ params.force_swap }}")

    embed_missing(build) >> catch_up
    # The champion first: if the swap fails, `follow_champion` tries again.
    caught_up >> promote_build(index) >> swapped
    swapped >> give_up(build)
