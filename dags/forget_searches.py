"""
### Forget searches

Removes the searches that the service logged more than `LENS_SEARCH_LOG_DAYS` ago: what was asked and shown, buyers' photos, and
what they did with the results.

**When.** Daily, in UTC, or by hand, e.g. after the setting was lowered. With 0 days all is removed, today's searches too. The
setting must be the same here as for the service.

**What.** `forget_searches` removes whole days of the log, with their photos, and the sessions that were landed from them, which
refer to these. A day is removed when all of its searches are older than the setting. Sessions that came from elsewhere stay,
and so do metrics of evaluations. `compact_lake` does the same among other things.

**When it fails.** The lake cannot be reached: clear the task. What was removed before that stays removed.

**May run beside** everything: nothing else reads what is so old. An evaluation of such a day that is running just then fails.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG

from plugins.tasks import first_day, forget_searches

with DAG(
    dag_id="forget_searches",
    doc_md=__doc__,
    schedule="@daily",
    start_date=first_day(),
    catchup=False,
    max_active_runs=1,
    default_args={
        "owner": "search",
        "retries": 3,
        "retry_delay": timedelta(minutes=5),
        "execution_timeout": timedelta(hours=4),
    },
    tags=["retention"],
):
    forget_searches()
