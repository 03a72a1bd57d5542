"""What `dynamix mask` decides on its statistics: verdicts under the configured rule, cuts, boosts, attributes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from dynamix.config import Config
from dynamix.jobs.cell_stats import Measured
from dynamix.jobs.mask_attributes import in_every_segment, lost_attributes
from dynamix.segmentation.attributes import Without
from dynamix.segmentation.back_off import say_whole
from dynamix.segmentation.boost import Boost, boosted, boosts
from dynamix.segmentation.cells import Cell, Statistics
from dynamix.segmentation.life import Stay, keep_restored
from dynamix.segmentation.masks import Protection, Verdict, judge
from dynamix.segmentation.quota import Quota, cuts_of, older
from dynamix.segmentation.rules import global_verdicts, keep_everything, random_verdicts


@dataclass(frozen=True)
class Decision:
    """One mask version before it is written: a verdict a cell, kept cells whose history is cut or lengthened, and those
    whose events lose attributes."""

    verdicts: Sequence[Verdict]
    cuts: Mapping[Cell, Quota]
    status: str
    boosts: Mapping[Cell, Boost] = field(default_factory=dict)
    without: Mapping[Cell, Without] = field(default_factory=dict)


def protection(config: Config, streams: Sequence[str]) -> Protection:
    """Streams that the config declares `protected`."""
    return Protection(frozenset(name for name in streams if config.declaration(name).protected))


def decide(config: Config, measured: Measured, stays: Mapping[Cell, Stay]) -> Decision:
    """Verdicts, cuts, boosts and attributes under the configured rule; `random` drops as many tokens as the bound would.

    Under the bound, cells of `stays` stay whole with all attributes and are not lengthened: a watch brought them back, or
    a gate refused a mask for them.
    """
    protected = protection(config, measured.streams)
    rule, statistics = config.mask.rule, measured.statistics
    if rule == "global":
        return one_mask(config, measured, "proposed")
    verdicts = judge(statistics, config.mask, protection=protected)
    if rule == "none":
        return Decision(keep_everything(verdicts), {}, "proposed")
    if rule == "random":
        drawn = random_verdicts(verdicts, statistics, seed=config.mask.seed, protection=protected)
        return Decision(drawn, {}, "proposed")
    verdicts = keep_restored(verdicts, stays)
    cuts = cuts_of(statistics, verdicts, config.mask)
    verdicts = say_whole(verdicts, stays.keys() if config.mask.attributes == "bound" else cuts.keys(), stays)
    cuts = {cell: cut for cell, cut in cuts.items() if cell not in stays}
    longer = _boosts(config, statistics, verdicts, cuts, never=stays.keys())
    verdicts = boosted(verdicts, longer)
    without = lost_attributes(config, statistics, verdicts, cuts, never=stays.keys())
    return Decision(verdicts, cuts, "proposed", longer, without)


def one_mask(config: Config, measured: Measured, status: str) -> Decision:
    """The same verdict, cut, boost and attributes for every segment, from all users together."""
    pooled = measured.statistics.pooled()
    verdicts = judge(pooled, config.mask, protection=protection(config, measured.streams))
    cuts = cuts_of(pooled, verdicts, config.mask)
    longer = _boosts(config, pooled, verdicts, cuts)
    verdicts, cells = boosted(verdicts, longer), measured.statistics.cells
    own = {
        cell: replace(cut, segment_id=cell[0], tokens=older(measured.statistics, cell, cut.events))
        for cell in cells
        if (cut := cuts.get((0, cell[1]))) is not None
    }
    without = in_every_segment(lost_attributes(config, pooled, verdicts, cuts), measured.statistics, cells)
    return Decision(global_verdicts(verdicts, cells), own, status, longer, without)


def _boosts(
    config: Config, statistics: Statistics, verdicts: Sequence[Verdict], cuts: Mapping[Cell, Quota], *,
    never: Collection[Cell] = (),
) -> dict[Cell, Boost]:  # fmt: skip
    """Kept cells whose history is lengthened; none of a stream that is sensitive."""
    sensitive = {cell for cell in statistics.cells if config.declaration(cell[1]).sensitive}
    base = config.history.per_stream
    return boosts(statistics, verdicts, cuts, config.mask, base=base, never=sensitive | set(never))
