"""
### Embed new listings

Embeds the listings that were created or updated in each window, and brings them into every index of the encoder's
space family: the live one, one being built, and those kept for rollback.

**When.** Hourly, in UTC (`LENS_EMBED_SCHEDULE`), from `LENS_EMBED_START` on; a run covers the hour before it. Missed
windows are caught up, two at a time. To replay windows, e.g. after listings were corrected, run a backfill:

    airflow backfill create --dag-id embed_new_listings --from-date 2026-01-30 --to-date 2026-01-31 --reprocess-behavior completed

`--to-date` is included. A run that is triggered by hand without a data interval is refused: it would have no window.

**What.** `require_window` checks the data interval. `embed` reads the window's listings from the lake, decodes and
encodes their photos, and writes the window's embeddings: all or nothing, the same again when repeated. `load_indexes`
projects them to each index's space and writes them; newer versions of a listing win, whatever the order.

**When it fails.** *Listings have not landed*: the task tries again; see what feeds the lake. *Images are unusable*: more
than `LENS_MAX_DEAD_LETTER_RATIO` of the window's photos could not be read; each is named with its reason in the window's
dead-letter file. Clear the failed task to go on; every task may run twice.

**Must not race with** nothing: windows are independent, and it may run beside `rebuild_index`, whose new index it feeds.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG
from airflow.timetables.interval import CronDataIntervalTimetable

from listing_lens.settings import load_settings
from plugins.operators.beam_job import BeamJobOperator
from plugins.tasks import WINDOW_ARGUMENTS, first_day, require_window

with DAG(
    dag_id="embed_new_listings",
    doc_md=__doc__,
    schedule=CronDataIntervalTimetable(load_settings().embed_schedule, timezone="UTC"),
    start_date=first_day(),
    catchup=True,
    max_active_runs=2,
    default_args={
        "owner": "search",
        "retries": 3,
        "retry_delay": timedelta(minutes=2),
        "retry_exponential_backoff": True,
        "execution_timeout": timedelta(hours=2),
    },
    tags=["embedding", "index"],
):
    embed = BeamJobOperator(task_id="embed", job="embed_listings", arguments=WINDOW_ARGUMENTS)
    load_indexes = BeamJobOperator(task_id="load_indexes", job="load_index", arguments=WINDOW_ARGUMENTS)

    # The load looks for indexes after the window has landed, and a rebuild looks for windows after its index exists:
    # so no window can slip between the two.
    require_window() >> embed >> load_indexes
