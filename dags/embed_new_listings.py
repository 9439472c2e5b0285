"""
### Embed new listings

Embeds the listings that were created or updated in each window, by every encoder in use, and brings them into every
index: the live one, one being built, and those kept for rollback.

**When.** Hourly, in UTC (`LENS_EMBED_SCHEDULE`), from `LENS_EMBED_START` on; a run covers the hour before it. Missed
windows are caught up, two at a time. To replay windows, e.g. after listings were corrected, run a backfill:

    airflow backfill create --dag-id embed_new_listings --from-date 2026-01-30 --to-date 2026-01-31 --reprocess-behavior completed

`--to-date` is included. A run that is triggered by hand without a data interval is refused: it would have no window.

To embed the catalog by a new encoder before anything else changes, give the backfill that encoder; then nothing but
indexes of its own is loaded. Name a version, since an alias may move meanwhile:

    airflow backfill create --dag-id embed_new_listings --from-date 2026-01-01 --to-date 2026-01-31 \\
        --reprocess-behavior completed --dag-run-conf '{"encoder": "models:/listing-encoder/3"}'

Then run `refit_projection` with `{"encoder": "models:/listing-encoder/3", "promote": true}`, which rebuilds the index.
Set `LENS_ENCODER` to the new encoder when it is live. The one before goes on embedding for as long as it has an index.

**What.** `require_window` checks the data interval. `encoders_in_use` waits for the window's listings, and finds the
encoders of all indexes and of `LENS_ENCODER`. `embed` runs once for each of them: it reads the window's listings from the
lake, decodes and encodes their photos, and writes the window's embeddings: all or nothing, the same again when repeated.
`load_indexes` projects them to each index's space and writes them; newer versions of a listing win, whatever the order.

**When it fails.** *Listings have not landed*: the task tries again; see what feeds the lake. *Images are unusable*: more
than `LENS_MAX_DEAD_LETTER_RATIO` of the window's photos could not be read; each is named with its reason in the window's
dead-letter file. *An encoder cannot be loaded*: restore it; or, if only an index that is no longer needed is of it,
remove that with `lens index delete` and clear `encoders_in_use` with what follows. *The live index would lack the window*:
its encoder went out of use and came back; clear the same. Clear a failed task to go on; every task may run twice.

**Must not race with** nothing: windows are independent, and it may run beside `rebuild_index`, whose new index it feeds.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG
from airflow.timetables.interval import CronDataIntervalTimetable

from listing_lens.settings import load_settings
from plugins.operators.beam_job import BeamJobOperator
from plugins.tasks import WINDOW_ARGUMENTS, encoder_param, encoders_in_use, first_day, require_window

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
    params={
        "encoder": encoder_param("Embed by this encoder alone, and load only its indexes; empty is every one in use"),
    },
    # Params reach the tasks as what they are: None rather than text.
    render_template_as_native_obj=True,
    tags=["embedding", "index"],
):
    encoders = encoders_in_use("{{ params.encoder }}")
    embed = BeamJobOperator.partial(task_id="embed", job="embed_listings").expand(arguments=encoders)
    load_indexes = BeamJobOperator(
        task_id="load_indexes", job="load_index", arguments=WINDOW_ARGUMENTS | {"encoder": "{{ params.encoder }}"}
    )

    # Indexes are looked for after the window has landed, and a rebuild looks for windows after its index exists: so no
    # window can slip between the two.
    require_window() >> encoders
    embed >> load_indexes
