#!/bin/bash
# Run once by the PostgreSQL image, on an empty volume: a role and a database of its own for Airflow and for MLflow.
set -euo pipefail

for name in airflow mlflow; do
    password=$(cat "/run/secrets/${name}_db_password")
    psql --no-psqlrc --set=ON_ERROR_STOP=1 --username="$POSTGRES_USER" --dbname=postgres \
        --set=name="$name" --set=password="$password" <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
done
