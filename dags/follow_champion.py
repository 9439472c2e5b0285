"""
### Follow the champion

Makes the version of `listing-embedder` with the alias `champion` the one that the live index serves, whoever moved the alias.

**When.** Within half a minute after the alias `champion` was moved: in MLflow's page, by `lens promote`, or by
`refit_projection`. The triggerer looks every 30 seconds whether the live index is of the champion's space; it compares what
is, so a move made while it, MLflow or Elasticsearch was away is found afterwards, and of several quick moves the last one
counts. While this DAG is paused, or no triggerer runs, nobody looks: a paused DAG is watched again up to a minute after it was
unpaused. By hand it does the same at once.

**What.** `decide` asks MLflow and Elasticsearch anew. It writes down a move that was made in MLflow's page, on the version's
page, as every other move is: a tag `move_…` says when, by whom, why, over which version, and with which metrics. Then nothing
follows if the live index is the champion's; `rollback_index` if an index of the champion's space was kept, which takes seconds;
else `rebuild_index`. The run that it starts is named `champion__v…` after the move. A move is followed once: if somebody then
points the search alias to another index, it stays there until the champion is moved again, or this DAG is triggered by hand.

**When it fails.** *MLflow or Elasticsearch cannot be reached*: it is tried again for about half an hour; then clear `decide`, or
trigger the DAG by hand. *Nothing happens after a move*: unpause this DAG and the two that it starts; `/api/v2/monitor/health` of
Airflow says whether a triggerer runs; its log says what keeps it from looking. *The run that it started failed*: clear that
run's failed task, or trigger this DAG by hand, which starts another unless one is active.

**May run beside** everything: it only starts runs, one at a time for each of the two DAGs.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG, Asset, AssetWatcher

from plugins.champion_tasks import REBUILD, ROLLBACK, decide
from plugins.tasks import first_day
from plugins.triggers.champion import ChampionTrigger

_RUN_ID = "{{ ti.xcom_pull(task_ids='decide', key='run_id') }}"

champion = Asset(
    name="listing-embedder-champion",
    uri="mlflow://listing-embedder/champion",
    watchers=[AssetWatcher(name="champion_is_not_live", trigger=ChampionTrigger(poll_s=30))],
)

with DAG(
    dag_id="follow_champion",
    doc_md=__doc__,
    schedule=[champion],
    start_date=first_day(),
    catchup=False,
    max_active_runs=1,
    default_args={
        "owner": "search",
        "retries": 5,
        "retry_delay": timedelta(minutes=1),
        "retry_exponential_backoff": True,
        "execution_timeout": timedelta(minutes=15),
    },
    tags=["index", "model"],
):
    # A try that was killed after it had started the run finds it there.
    rebuild = TriggerDagRunOperator(
        task_id=REBUILD,
        trigger_dag_id=REBUILD,
        conf={"model": "champion", "unless_live": True},
        trigger_run_id=_RUN_ID,
        skip_when_already_exists=True,
    )
    rollback = TriggerDagRunOperator(
        task_id=ROLLBACK,
        trigger_dag_id=ROLLBACK,
        conf={"index": "{{ ti.xcom_pull(task_ids='decide', key='index') }}"},
        trigger_run_id=_RUN_ID,
        skip_when_already_exists=True,
    )

    decide() >> [rebuild, rollback]
