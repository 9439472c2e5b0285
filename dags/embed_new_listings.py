"""
### Embed new listings

Embeds the listings that were created or updated in each window, by every encoder in use, and brings them into every
index that was filled: the live one first, then those kept for rollback, and one that awaits its swap.

**When.** Hourly, in UTC (`LENS_EMBED_SCHEDULE`), from `LENS_EMBED_START` on; a run covers the hour before it. Missed
windows are caught up, two at a time. To replay windows, e.g. after listings were corrected and landed again, run a backfill:

    airflow backfill create --dag-id embed_new_listings --from-date 2026-01-30 --to-date 2026-01-31 --reprocess-behavior completed

`--to-date` is included. A run that is triggered by hand without a data interval is refused: it would have no window. What
the table of embeddings already holds is not embedded again, so a replay costs only what has changed.

To embed the catalog with a new encoder before anything else changes, give the backfill that encoder; then only its own
indexes are loaded. Name a version, since an alias may move meanwhile:

    airflow backfill create --dag-id embed_new_listings --from-date 2026-01-01 --to-date 2026-01-31 \\
        --reprocess-behavior completed --dag-run-conf '{"encoder": "models:/listing-encoder/3"}'

A backfill embeds window by window. Over many windows `lens embed --encoder models:/listing-encoder/3` is less work: it takes
all windows that have landed together, and embeds each item once.

Then run `refit_projection` with `{"encoder": "models:/listing-encoder/3", "promote": true}`; `follow_champion` then starts the
rebuild. Set `LENS_ENCODER` to the new encoder when it is live. The previous one continues to embed for as long as it has an
index.

**What.** `require_window` checks the data interval. `land_listings` lands the listings that were put to the search service,
some minutes after the window's end, where that is what feeds the lake (`LENS_LISTINGS_FEED`). `find_encoder` waits for the
window's listings, and finds the live index's encoder; before there is one, `LENS_ENCODER`. `embed` embeds the window by it:
it reads the listings that landed in the window, late ones included, and compares the newest version of each with the
encoder's table. New photos are decoded and encoded; a photo that did not change keeps its embedding. Everything comes into
the table in one commit, and the ledger says which input is embedded. Invalid rows, and photos that cannot be used, become
dead letters, which `redrive_dead_letters` tries again where that may help. `load_live` projects what has changed in the
table since the live index was last loaded to the index's space and writes it; newer versions of a listing win, whatever the
order. `embed_others` and `load_others` do the same for the encoders that `find_other_encoders` finds, `LENS_ENCODER` among
them, and the indexes that `find_other_indexes` finds: an abandoned index or an encoder that cannot be loaded fails its own
task, and nothing else. `require_live_is_fed` ends the run as `load_live` did.

**When it fails.** *Listings have not landed*: the task tries again; see what feeds the lake. *Listings are unusable*: more
than `LENS_MAX_DEAD_LETTER_RATIO` of them failed, and nothing of the run was kept; the message has the commonest reasons. *The
window was taken over*: another run of it began later and does the work. *An encoder cannot be loaded*: restore it; or, if it
only belongs to an index that is no longer needed, remove that index with `lens index retire` and clear `find_encoder` with
what follows. *The live index would lack the window*: its encoder went out of use and came back; clear the same. A failed
task of `embed_others` or `load_others` does not fail the run: clear it once its cause is mended, or retire its index. Clear a
failed task to continue; every task may run twice.

**May run beside** everything: commits to a table take turns, windows come in any order, and a running `rebuild_index` gets
them into its new index too.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG
from airflow.timetables.interval import CronDataIntervalTimetable

from listing_lens.settings import load_settings
from plugins.operators.beam_job import BeamJobOperator
from plugins.tasks import (
    WINDOW_ARGUMENTS,
    encoder_param,
    feed_indexes,
    find_encoder,
    find_other_encoders,
    first_day,
    land_listings,
    require_window,
)

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
    encoder = find_encoder("{{ params.encoder }}")
    embed = BeamJobOperator(task_id="embed", job="embed_listings", arguments=encoder)
    others = find_other_encoders("{{ params.encoder }}", encoder["encoder"])
    embed_others = BeamJobOperator.partial(task_id="embed_others", job="embed_listings").expand(arguments=others)
    load_live, find_indexes = feed_indexes("{{ params.encoder }}", WINDOW_ARGUMENTS)

    # Indexes are looked for after the window has landed, and a rebuild looks for windows after its index exists: so no
    # window can slip between the two.
    require_window() >> land_listings() >> encoder
    # The live index first: nothing that is wrong with another may keep listings from it.
    embed >> load_live >> others
    embed_others >> find_indexes
