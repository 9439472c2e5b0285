"""
### Rebuild the index

Builds a new index for an embedder and, once it is verified, moves the alias to it.

**When.** `follow_champion` triggers it when the champion moved, in MLflow's page or elsewhere; or by hand with its parameter.

**What.** `resolve_embedder` looks the version up in MLflow. `create_index` makes an empty index that names its space.
`embed_missing` embeds what has landed and the embedder's encoder has not embedded yet: all windows together, only the newest
version of each item; from `create_index` on, `embed_new_listings` embeds new windows with it as well. `load` projects and
writes the newest version of every item, then whatever was embedded meanwhile, until nothing is left. `verify` looks every
item up in the index, and fails when one is missing or older, when a search could not find it, or when a window that landed
before the load began was never embedded. `swap` moves the alias in one request: searches see the old index or the new one,
never both or neither. The old index is kept for rollback, and continues to receive new listings.

**When it fails.** The alias has not moved, and readers noticed nothing. Clear the failed task to continue: `embed_missing` does
not embed again what is in the encoder's table, and a load may be repeated. *Windows were not embedded*: clear `embed_missing`
and what follows. An index of a failed build, or one no longer needed for rollback, stays until `lens index delete`.

**Must not race with** another rebuild: one run at a time. It may run beside every other DAG: `embed_new_listings` and
`redrive_dead_letters` feed the new index too.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG

from plugins.operators.beam_job import BeamJobOperator
from plugins.operators.search_index import CreateIndexOperator, SwapAliasOperator
from plugins.tasks import RUN_NAME, embedder_param, first_day, resolve_embedder

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
    },
    tags=["index"],
):
    embedder = resolve_embedder("{{ params.model }}")
    index = CreateIndexOperator(task_id="create_index", card=embedder["card"], build=RUN_NAME)
    embed_missing = BeamJobOperator(
        task_id="embed_missing",
        job="embed_listings",
        arguments={"each_landed": True, "encoder": embedder["encoder_source"]},
    )
    load = BeamJobOperator(task_id="load", job="load_index", arguments={"index": index.output})
    verify = BeamJobOperator(task_id="verify", job="verify_index", arguments={"index": index.output})
    swap = SwapAliasOperator(task_id="swap", index=index.output)

    # Once the index exists, its encoder is in use: what lands from then on is embedded by `embed_new_listings`.
    index >> embed_missing
    # The alias moves only to an index that holds all that the lake holds.
    embed_missing >> load >> verify >> swap
