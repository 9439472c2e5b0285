"""Verify an index: it holds what the lake holds, its vectors are the lake's, and searches of it find what they should.

Every check is made, whatever the others say; the report of all of them is kept, and the job fails if one has failed, so that
the alias is not moved:

- mapping: the index names its space, and compares vectors as it should.
- windows: the index's encoder has embedded every landed window of listings. One that landed after the index's first load
  began, or was replaced, is left to its own run for two hours.
- reconciled: every item of the lake is in the index, at least as new, with the same fields if equally new, and found by
  searches if it should be; and what searches find is in the lake. What was written after the newest embedded window is ahead.
- vectors: those of a sample of items are what the projection makes of the lake's embeddings.
- self_retrieval: the sampled items are found by their own vectors.
- recall: of the 10 nearest neighbours of sampled items, by exact search over all of the lake, the index finds enough.
- canaries: sampled listings are found by their photos, read and embedded as a buyer's would be.
- size: the index holds about as many searchable documents as the live one.

LENS_VERIFY_… set the samples' sizes and the thresholds. With --force, a failed check is accepted by its name, and the report
says so. With --repair, up to 10,000 items that differ are written again from the lake, and documents that it does not hold are
deleted; then everything is verified again. Every item's vector is compared for that.

    python -m beam_jobs.verify_index --index listings-…
    python -m beam_jobs.verify_index --live --repair
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import apache_beam as beam
from apache_beam.pvalue import AsSingleton

from beam_jobs.launcher import launch, parser, pipeline_options
from beam_jobs.transforms.cluster import Cluster
from beam_jobs.transforms.tables import ReadTable
from beam_jobs.verification.config import Config, Limits, least_cosine
from beam_jobs.verification.known import check_mapping, check_size, check_windows, embedded_until
from beam_jobs.verification.neighbours import MergeNearness, Nearness, check_recall, nearness
from beam_jobs.verification.probes import Probed, probe
from beam_jobs.verification.reconcile import Reconcile, Reconciled, check_reconciled, check_vectors, sum_reconciled
from beam_jobs.verification.repair import leave, repair
from beam_jobs.verification.rows import BATCH_ROWS, COLUMNS, ProjectRows
from beam_jobs.verification.surplus import find_surplus
from listing_lens.embedding.sources import encoder_runtime
from listing_lens.errors import LensError
from listing_lens.images.source import ImageSource
from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.ledger import Ledger
from listing_lens.lake.pins import Pins
from listing_lens.lake.windows import LISTINGS, Lake
from listing_lens.search.builds import Builds
from listing_lens.search.index import PATIENCE_S, Index, SearchIndex
from listing_lens.search.loads import Loads
from listing_lens.search.verification import CHECKS, Check, Verification, require_known
from listing_lens.settings import load_settings

logger = logging.getLogger(__name__)


def run(pipeline: beam.Pipeline, config: Config) -> beam.PCollection[Verification]:
    """The encoder's table and the index → the `Verification`, once it is recorded; raises if it did not pass."""
    probed = AsSingleton(pipeline | "Begin" >> beam.Create([config]) | "Probe" >> beam.Map(probe))
    # Read once and batch by batch: nothing regroups the rows, which a local runner would keep in memory for that.
    rows = (
        pipeline
        | "Table" >> ReadTable(config.embeddings.items, config.version, COLUMNS, batch_rows=BATCH_ROWS)
        | "Project" >> beam.ParDo(ProjectRows(config))
    )
    reconciled = (
        rows | "Reconcile" >> beam.ParDo(Reconcile(config), probed) | "Sum" >> beam.CombineGlobally(sum_reconciled)
    )
    near = (
        rows
        | "Exact neighbours" >> beam.Map(nearness, probed)
        | "Nearest of all" >> beam.CombineGlobally(MergeNearness())
    )
    return (
        pipeline
        | "End" >> beam.Create([config])
        | "Conclude" >> beam.Map(_conclude, probed, AsSingleton(reconciled), AsSingleton(near))
    )


def _conclude(config: Config, probed: Probed, reconciled: Reconciled, near: Nearness | None) -> Verification:
    search_index = config.cluster.connect()
    try:
        surplus = find_surplus(config, search_index, reconciled.findable)
        made = [
            *config.known,
            *probed.checks,
            check_reconciled(reconciled, surplus),
            check_vectors(reconciled, config.least_cosine),
            check_recall(near, probed.query_ids, config.limits),
            Check(name="ndcg", passed=None, says="left out: needs the evaluation of this index's embedder"),
        ]
        verification = Verification(
            index=config.index.name,
            space=config.index.card.space,
            table_version=config.version,
            began_at=config.began_at,
            ended_at=datetime.now(UTC),
            checks=tuple(sorted(made, key=lambda check: list(CHECKS).index(check.name))),
            forced=config.forced,
            repaired=config.repaired,
        )
        Builds(search_index).verified(verification)
    finally:
        search_index.client.close()
    for check in verification.checks:
        logger.info(
            "%s: %s: %s", check.name, {True: "passed", False: "failed", None: "left out"}[check.passed], check.says
        )
    if config.then_repair:
        leave(config, reconciled, surplus)
    elif not verification.passed:
        raise LensError(verification.sentence)
    return verification


def configure(
    index_name: str | None,
    *,
    forced: Iterable[str] = (),
    then_repair: bool = False,
    now: datetime | None = None,
) -> Config:
    """Find the index and what it is compared with, and make the checks that need no look at the items.

    Args:
        index_name: None means the live one.
        forced: names of checks to accept.
        then_repair: leave what differs to `repair`, instead of failing.
        now: the current time, timezone-aware.

    Raises:
        LensError: the index, its projection, the lake or the cluster cannot be found, nothing was loaded into the index, or
            there is no check of a forced name.
    """
    names, began_at = require_known(forced), now or datetime.now(UTC)
    settings = load_settings()
    lake = Lake(settings.lake)
    lake.check()
    search_index = SearchIndex.connect(settings, patience_s=PATIENCE_S)
    index = search_index.get(index_name) if index_name else search_index.require_live()
    loads = Loads(search_index, index)
    version = loads.reached()
    if not version:
        raise LensError(
            f"nothing was loaded into index {index.name} yet: an empty index is not swapped in; load it first"
        )
    search_index.finish_load(index.name)
    embeddings = Embeddings(lake, index.card.encoder_id)
    landed, lines = lake.manifests(LISTINGS, lake.windows(LISTINGS)), Ledger(embeddings).lines()
    began = min(load.started_at for load in loads.all())
    roots = sorted({manifest.image_root for manifest in landed.values() if manifest.image_root is not None})
    config = Config(
        embeddings=embeddings,
        index=index,
        version=version,
        cluster=Cluster.of(settings),
        limits=Limits.of(settings),
        known=(
            check_mapping(index, search_index.mapping(index.name), _index_type(search_index, index)),
            check_windows(index, landed, lines, began=began, now=began_at),
            check_size(search_index, index, settings.verify_least_size),
        ),
        embedded_until=embedded_until(lines),
        began_at=began_at,
        images=ImageSource.of(settings).allowing(roots),
        runtime=encoder_runtime(settings),
        least_cosine=least_cosine(Pins(embeddings).get()),
        refused=frozenset((refusal.item_id, refusal.version) for refusal in loads.refusals()),
        forced=names,
        every_vector=then_repair,
        then_repair=then_repair,
    )
    config.projection()
    return config


def _index_type(search_index: SearchIndex, index: Index) -> str:
    """What an index was made as, whatever new ones are made as by now."""
    layout = Builds(search_index).get(index.name).layout or search_index.layout
    return str(layout.options["type"])


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run the pipeline to its end; to repair, twice."""
    arguments = parser(__doc__)
    which = arguments.add_mutually_exclusive_group(required=True)
    which.add_argument("--index", help="the index to verify, by its full name")
    which.add_argument("--live", action="store_true", help="verify the index behind the alias")
    arguments.add_argument(
        "--force", action="append", metavar="NAME", help="accept this check if it fails; can be repeated"
    )
    arguments.add_argument(
        "--repair", action="store_true", help="write again what differs, delete what is surplus, and verify again"
    )
    known, beam_arguments = arguments.parse_known_args(argv)
    forced = known.force or ()
    config = configure(known.index, forced=forced, then_repair=known.repair)
    _run_to_its_end(config, beam_arguments)
    if known.repair:
        repaired = repair(config)
        again = configure(config.index.name, forced=forced)
        _run_to_its_end(replace(again, began_at=config.began_at, every_vector=True, repaired=repaired), beam_arguments)


def _run_to_its_end(config: Config, beam_arguments: Sequence[str]) -> None:
    with beam.Pipeline(options=pipeline_options(load_settings(), beam_arguments)) as pipeline:
        run(pipeline, config)


if __name__ == "__main__":
    launch(main)
