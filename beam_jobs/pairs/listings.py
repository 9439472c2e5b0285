"""Which listings become pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime

import apache_beam as beam
from apache_beam.pvalue import AsDict, AsList, AsSingleton, TaggedOutput

from beam_jobs.pairs.elements import SampledListing
from beam_jobs.pairs.rules import Rules
from listing_lens.lake.records import Listing, Refused, Status
from models.pairs.titles import is_message
from models.sampling import SampledBins, bin_of, lowest_bins, sample_number, water_fill


class KeepTrainable(beam.DoFn):
    """Listing versions → those fit for training; `left_out`: for each of the others, the rule that excluded it.

    Versions of the test period, which begins at `test_start`, are not: a training must not know what came later.
    """

    def __init__(self, test_start: datetime) -> None:
        self._test_start = test_start

    def process(self, listing: Listing | Refused) -> Iterator[Listing | TaggedOutput]:
        if isinstance(listing, Refused):
            yield TaggedOutput("left_out", "left_out_invalid")
        elif listing.updated_at >= self._test_start:
            yield TaggedOutput("left_out", "left_out_test_period")
        elif listing.status in (Status.RESERVED, Status.DELETED):
            yield TaggedOutput("left_out", f"left_out_{listing.status}")
        elif is_message(listing.title):
            yield TaggedOutput("left_out", "left_out_message")
        else:
            yield listing


class SampleListings(beam.PTransform):
    """Candidates, one per item → (sampled, not sampled): the lowest sample numbers of each stratum, up to a quota.

    The quota is the same for all strata and as large as the number of pairs allows; a stratum with fewer items contributes
    all of them. Sample numbers are counted by bin, so that no worker holds all ids of a stratum. A stratum falls short of its
    quota by less than a bin: one item in small samples, about one in 10,000 in large ones.
    """

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self._rules = rules

    def expand(
        self, candidates: beam.PCollection[Listing]
    ) -> tuple[beam.PCollection[SampledListing], beam.PCollection[str]]:
        rules = self._rules
        strata = (
            candidates
            | "Bins" >> beam.Map(_bin, rules=rules)
            | "Count bins" >> beam.combiners.Count.PerElement()
            | "By stratum" >> beam.MapTuple(lambda key, count: (key[0], (key[1], count)))
            | "Strata" >> beam.GroupByKey()
            | "As counts" >> beam.MapTuple(lambda stratum, counts: (stratum, dict(counts)))
        )
        sizes = strata | "Sizes" >> beam.MapTuple(lambda _, counts: sum(counts.values()))
        quota = (
            candidates.pipeline
            | "Once" >> beam.Create([None])
            | "Quota" >> beam.Map(lambda _, sizes: water_fill(sizes, rules.pairs), AsList(sizes))
        )
        sampled = strata | "Sampled bins" >> beam.Map(
            lambda stratum, quota: (stratum[0], lowest_bins(stratum[1], quota)), AsSingleton(quota)
        )
        split = candidates | "Sampled" >> beam.FlatMap(_sampled, AsDict(sampled), rules=rules).with_outputs(
            "not_sampled", main="sampled"
        )
        return split.sampled, split.not_sampled


def _bin(listing: Listing, rules: Rules) -> tuple[str, int]:
    return rules.stratum(listing), bin_of(sample_number(rules.salt, listing.item_id))


def _sampled(
    listing: Listing, sampled: Mapping[str, SampledBins], rules: Rules
) -> Iterator[SampledListing | TaggedOutput]:
    number = sample_number(rules.salt, listing.item_id)
    turn = sampled[rules.stratum(listing)].turn(number)
    if turn is not None:
        yield SampledListing(listing, (turn, number, listing.item_id))
    else:
        yield TaggedOutput("not_sampled", listing.item_id)
