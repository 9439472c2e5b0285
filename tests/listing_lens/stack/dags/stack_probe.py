"""Two DAGs for the tests of the stack: one task that says what it sees, and fails when asked to."""

from datetime import UTC, datetime

from airflow.sdk import dag, task
from airflow.timetables.interval import CronDataIntervalTimetable


def probe():
    @task
    def look(dag_run=None, data_interval_start=None, data_interval_end=None):
        from listing_lens.settings import load_settings

        if dag_run.conf.get("fail"):
            raise ValueError("asked to fail")
        settings = load_settings()
        return {
            "elasticsearch_url": settings.elasticsearch_url,
            "mlflow_url": settings.mlflow_url,
            "home": str(settings.home),
            "interval": [str(data_interval_start), str(data_interval_end)],
        }

    look()


# A DAG has one open backfill at a time, and Airflow takes half a minute to close it.
for dag_id in ("stack_probe", "second_probe"):
    dag(
        dag_id=dag_id,
        schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),
        start_date=datetime(2026, 1, 1, tzinfo=UTC),
        catchup=False,
    )(probe)()
