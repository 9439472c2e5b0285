"""
### Fine-tune the encoder

Trains the encoder further on the marketplace's own image–title pairs, compares it with its parent on search sessions that
were held out of that, and registers it as the next version of `listing-encoder` in MLflow, with the alias `candidate`.

**When.** By hand, e.g. once a month: a training costs GPU hours, and a person should look at the outcome.

**What.** `resolve` checks the parameters and settles the window and the parent. `sample_pairs` samples pairs of photo and
title from the window's listings, without reserved ones and titles that are messages, and sessions to validate and to test
on; the same sample when repeated. `train` fine-tunes, logs live to MLflow's experiment `fine-tuning`, and writes the
encoder that was best on the validation sessions to the lake. `compare` ranks the test sessions with it, its parent and
`LENS_COMPARISON_ENCODERS`, alone and with a projection; in random order; and as they were shown. `register_encoder`
makes it the candidate, with what the comparison found on its page; it is skipped if no validation was better than the
parent's. `promote_encoder` makes it the champion if the run was asked to.

**Held out.** Products are split by a hash into those that are learnt from, those that choose the checkpoint (validation) and
those that are only reported (test); time is split into the test period, at the window's end, and what came before. Pairs are
of listings before the test period and of no test product. A validation session lies before the test period, and all that was
tapped in it is of validation products; a test session lies within it, and all that was tapped is of test products. If one of its
photos looks like one that was learnt from or chosen by, it is *seen*, and reported apart. Figures are means over unseen test
sessions, with 95 % intervals; whether the new encoder is better than its parent is told by the interval of the gain, which
compares the two session by session.

Where `train` and `compare` run is `LENS_TRAINING_PLACE`: a process of this host, a pod, or Vertex AI; see
`docker/README.md`.

**Next.** This run changes no index. To move to the new encoder, here version 3, embed the catalog with it, then fit its
projection, whose promotion `follow_champion` answers with a rebuild:

    airflow backfill create --dag-id embed_new_listings --from-date 2026-01-01 --to-date 2026-01-31 \\
        --reprocess-behavior completed --dag-run-conf '{"encoder": "models:/listing-encoder/3"}'
    airflow dags trigger refit_projection --conf '{"encoder": "models:/listing-encoder/3", "promote": true}'

The rebuild itself embeds windows that land meanwhile. With `LENS_ENCODER=models:/listing-encoder@champion` new listings
are embedded by the champion once it is promoted, and by the previous encoder for as long as it has an index.

**When it fails.** *Listings have not landed*: give a `start` and an `end` that the lake covers. *The parent has no text tower*:
it cannot learn from titles; choose another. *No session is left to validate or to test on*, or all are of one product: choose a
longer window, or larger shares. *Sessions are from the search
service's log*: a sample would keep buyers' photos for longer than `LENS_SEARCH_LOG_DAYS`, so it takes none of them; land sessions
whose photos you may keep, from your own feed. *A training ended early*
(out of memory, a loss that is not a number): its last good checkpoint is kept; the message says what to change in
`recipe`. Clear a failed or killed `train`, and it continues from its last checkpoint, which belongs to this parent,
these pairs and this recipe, and goes on with any number of GPUs. *`compare` cannot load an encoder*: set
`LENS_COMPARISON_ENCODERS` to those that can be reached.

**Must not race with** another training on the same GPUs: one run at a time. It may run beside every other DAG.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, Param

from listing_lens.settings import load_settings
from plugins.finetune_tasks import promote_encoder, register_encoder, resolve
from plugins.operators.beam_job import BeamJobOperator
from plugins.operators.training import training_task
from plugins.tasks import RUN_NAME, encoder_param, first_day, optional_param

with DAG(
    dag_id="finetune_encoder",
    doc_md=__doc__,
    schedule=None,
    start_date=first_day(),
    catchup=False,
    max_active_runs=1,
    default_args={
        "owner": "search",
        "retries": 2,
        "retry_delay": timedelta(minutes=2),
        "execution_timeout": timedelta(hours=12),
    },
    params={
        "start": optional_param(
            "string",
            format="date",
            description="The first day of listings, in UTC; empty is three months before the end, or the first that landed.",
        ),
        "end": optional_param(
            "string",
            format="date",
            description="The day after the last one, in UTC; empty is the end of what has landed.",
        ),
        "pairs": Param(1_000_000, type="integer", minimum=1, description="Pairs to sample, validation included."),
        "sessions": Param(
            2_000,
            type="integer",
            minimum=1,
            description="Search sessions to validate on, and as many to test on, at most.",
        ),
        "validation_share": Param(
            0.1,
            type="number",
            exclusiveMinimum=0,
            maximum=0.4,
            description="The share of the products that choose the checkpoint rather than being learnt from.",
        ),
        "test_share": Param(
            0.2,
            type="number",
            exclusiveMinimum=0,
            maximum=0.4,
            description="The share of the products that are only reported.",
        ),
        "test_time": Param(
            0.1,
            type="number",
            exclusiveMinimum=0,
            maximum=0.5,
            description="The share of the window, at its end, whose sessions are only reported and whose listings are left out.",
        ),
        "image_side": Param(
            288,
            type="integer",
            minimum=1,
            description="Pixels of the shorter side of the photos that are kept: slightly more than the encoder's input.",
        ),
        "split_by": Param(
            "product",
            type="string",
            enum=["product", "seller"],
            description="What training, validation and test never share: a product's listings, or a seller's.",
        ),
        "balance": Param(False, type="boolean", description="Sample as evenly as possible from the categories."),
        "parent": encoder_param("Train this encoder further; empty is LENS_ENCODER"),
        "recipe": Param(
            {}, type="object", description="Hyperparameters by name; the defaults are in models/finetune/recipe.py."
        ),
        "promote": Param(False, type="boolean", description="Make the new version of listing-encoder the champion."),
    },
    tags=["encoder", "model"],
):
    resolved = resolve(RUN_NAME)
    sample_pairs = BeamJobOperator(task_id="sample_pairs", job="sample_pairs", arguments=resolved["sample"])
    train = training_task(
        task_id="train",
        command="train",
        arguments={
            "name": RUN_NAME,
            "pairs": RUN_NAME,
            "parent": "{{ ti.xcom_pull(task_ids='resolve')['parent'] }}",
            "recipe": "{{ params.recipe | tojson }}",
        },
        # A million pairs on one small GPU take more than a day.
        execution_timeout=timedelta(days=4),
    )
    compare = training_task(
        task_id="compare",
        command="compare",
        arguments={"name": RUN_NAME, "with": load_settings().comparison_encoders},
    )
    version = register_encoder(RUN_NAME)

    sample_pairs >> train >> compare >> version >> promote_encoder(version)
