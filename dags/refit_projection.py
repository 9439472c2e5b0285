"""
### Refit the projection

Fits the PCA on the encoder's embeddings in the lake, and registers encoder and projection together as the next version of
`listing-embedder` in MLflow, with the alias `candidate`.

**When.** Weekly, or by hand after the first windows were embedded, or, with its parameter, after another encoder has
embedded the catalog (see `embed_new_listings`).

**What.** `fit` merges sufficient statistics over the newest embedding of each item in one pass and writes the projection to
the lake: over all items, or over a sample, by the time of their last update, by share or by number. `previous_projection`
looks up the champion's projection, if it is of the same encoder, and `assess` compares the new one with it on a sample of the
items that can be found today: recall against exact search with the full embeddings, at 8, 16, 32 … dimensions, and the angles
between the two subspaces. Its log ends with a sentence on whether a rebuild is worth it, which is also the description of the
version in MLflow. `register_fit` logs the fit and its assessment to MLflow, with figures, and makes it the candidate.
`promote` makes it the champion if the run was asked to, or if there is no champion yet. Otherwise it stays the candidate, and
the index stays as it is.

**Next.** This run changes no index. `follow_champion` sees the new champion within half a minute and starts `rebuild_index`,
since vectors of two projections are never compared. To make the candidate the champion later, move the alias `champion` in
MLflow, or `lens promote candidate`.

**When it fails.** *Too few embeddings*: embed more windows, or keep fewer dimensions. *Whitening would blow up rounding*: keep
as few dimensions as it says. *Not in the lake* or *not in reach*: the alias has not moved; a champion must be loadable here. A
repeated run fits anew; an equal projection is registered once.

**May run beside** everything: another projection gets another id, and one that is fitted again is left as it is.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, Param

from plugins.operators.beam_job import BeamJobOperator
from plugins.tasks import RUN_NAME, encoder_param, first_day, optional_param, previous_projection, promote, register_fit

_FIT_PARAMS = ("encoder", "dims", "explained_variance", "whiten", "fraction", "rows", "window_start", "window_end")

with DAG(
    dag_id="refit_projection",
    doc_md=__doc__,
    schedule="@weekly",
    start_date=first_day(),
    catchup=False,
    max_active_runs=1,
    default_args={
        "owner": "search",
        "retries": 2,
        "retry_delay": timedelta(minutes=2),
        "execution_timeout": timedelta(hours=4),
    },
    params={
        "encoder": encoder_param("Fit on the embeddings of this encoder; empty is LENS_ENCODER"),
        "dims": optional_param(
            "integer",
            minimum=1,
            description="Dimensions to keep; empty is LENS_PROJECTION_DIMS.",
        ),
        "explained_variance": optional_param(
            "number",
            exclusiveMinimum=0,
            exclusiveMaximum=1,
            description="Keep as few dimensions as hold this share of the variance, instead of a fixed number.",
        ),
        "whiten": Param(False, type="boolean", description="Scale every kept axis to the same variance."),
        "fraction": optional_param(
            "number",
            exclusiveMinimum=0,
            maximum=1,
            description="Fit on this share of the items, sampled by a hash of their ids; empty is all.",
        ),
        "rows": optional_param(
            "integer",
            minimum=1,
            description="Fit on about this many embeddings, sampled likewise, instead of a share.",
        ),
        "window_start": optional_param(
            "string",
            format="date-time",
            description="Fit only on items that were last updated from here on, before window_end; empty is all.",
        ),
        "window_end": optional_param(
            "string",
            format="date-time",
            description="The end of that time; goes with window_start.",
        ),
        "assessed_items": optional_param(
            "integer",
            minimum=1,
            description="Assess the fit on about so many items; empty is 20,000.",
        ),
        "assessed_queries": optional_param(
            "integer",
            minimum=2,
            description="Search for so many of them; empty is 500. More tell smaller differences from chance.",
        ),
        "promote": Param(
            False,
            type="boolean",
            description="Make the new version the champion, which the index then follows. The first version becomes it anyway.",
        ),
    },
    # Params reach the tasks as what they are: numbers, booleans and None rather than text.
    render_template_as_native_obj=True,
    tags=["projection", "model"],
):
    fit = BeamJobOperator(
        task_id="fit",
        job="fit_projection",
        arguments={"name": RUN_NAME} | {name: f"{{{{ params.{name} }}}}" for name in _FIT_PARAMS},
    )
    previous = previous_projection(RUN_NAME)
    assess = BeamJobOperator(
        task_id="assess",
        job="assess_projection",
        arguments={
            "name": RUN_NAME,
            "previous": previous,
            "items": "{{ params.assessed_items }}",
            "queries": "{{ params.assessed_queries }}",
        },
    )
    version = register_fit(RUN_NAME)

    fit >> previous >> assess >> version >> promote(version, "{{ params.promote }}")
