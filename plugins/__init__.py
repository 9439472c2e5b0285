"""Airflow's own extensions: hooks, operators and tasks that the DAGs are wired from."""
