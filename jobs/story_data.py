"""One user's story as plain values: what became of each event before an impression, and from base rate to score.

It needs no Spark and holds no id: streams, ages and numbers only.
"""

from __future__ import annotations

from dataclasses import dataclass

from dynamix.features.quotas import CUT, KEPT, OUTSIDE, REMOVED

BASE, IMPRESSION, OTHERS = "base rate", "impression alone", "other streams"
MOST_BARS = 12
"""Bars of a waterfall; what adds least beyond them is summed up in one."""
NEWEST = 12
"""Events that the command line lists one by one."""


@dataclass(frozen=True)
class Past:
    """One event before the impression: how long before (s), its fate (features/story.py), its dwell.

    `usable`: the dwell was known by then and enters a statistic; `censored`: it was known that the session ended with
    the event. An event that is neither has no dwell, or one that was still going on.
    """

    stream: str
    age_s: float
    fate: str
    boosted: bool = False
    usable: bool = True
    censored: bool = False

    @property
    def lane(self) -> str:
        """Its surface; a stream under a name of its own has its own lane."""
        return self.stream.partition("/")[0]


@dataclass(frozen=True)
class Bar:
    """A step of the waterfall: the probability before and after."""

    name: str
    before: float
    after: float

    @property
    def adds(self) -> float:
        return self.after - self.before


@dataclass(frozen=True)
class Score:
    """The waterfall of one head: `bars` lead from `base` to `score` without a gap.

    `model_mask` is the mask that the model serves with; `masked` is its score without what the shown mask takes away.
    """

    head: str
    base: float
    score: float
    bars: tuple[Bar, ...]
    model: str
    model_mask: str
    masked: float | None = None


@dataclass(frozen=True)
class Story:
    """One impression of one user under one mask version. `untold` says why there is no score; `rule` why this user."""

    rule: str
    mask_version: str
    mask_status: str
    segment_id: int
    segment_name: str
    tier: str
    holdout: bool
    part: str
    label: str
    outcome: bool | None
    events: tuple[Past, ...]
    score: Score | None = None
    untold: str = ""

    @property
    def history(self) -> tuple[Past, ...]:
        return tuple(e for e in self.events if e.fate != OUTSIDE)

    def count(self, fate: str) -> int:
        """Events of one fate."""
        return sum(e.fate == fate for e in self.events)


@dataclass(frozen=True)
class Counts:
    """Events of one stream by fate; `boosted` and `censored` are among the kept ones."""

    stream: str
    kept: int
    cut: int
    removed: int
    outside: int
    boosted: int
    censored: int


def by_stream(story: Story) -> list[Counts]:
    """Counts of every stream with an event, the largest history first, ties by name."""
    found = []
    for stream in sorted({e.stream for e in story.events}):
        mine = [e for e in story.events if e.stream == stream]
        kept = [e for e in mine if e.fate == KEPT]
        fates = {fate: sum(e.fate == fate for e in mine) for fate in (CUT, REMOVED, OUTSIDE)}
        found.append(
            Counts(
                stream, len(kept), fates[CUT], fates[REMOVED], fates[OUTSIDE],
                sum(e.boosted for e in kept), sum(e.censored for e in kept),
            )
        )  # fmt: skip
    return sorted(found, key=lambda c: (-(c.kept + c.cut + c.removed), c.stream))


def shortened(score: Score, *, most: int = MOST_BARS) -> tuple[Bar, ...]:
    """At most `most` bars, at least 2: what adds least goes into one at the end; the sum stays the same."""
    if len(score.bars) <= most:
        return score.bars
    streams = [bar for bar in score.bars if bar.name != IMPRESSION]
    largest = sorted(streams, key=lambda bar: -abs(bar.adds))[: most - 2]
    bars, at = [], score.base
    for bar in score.bars:
        if bar.name == IMPRESSION or bar in largest:
            bars.append(Bar(bar.name, at, at + bar.adds))
            at += bar.adds
    return (*bars, Bar(f"{len(streams) - len(largest)} {OTHERS}", at, score.score))


def summary(story: Story) -> str:
    """What the mask does to this history, in one sentence group."""
    kept, cut, removed = (story.count(fate) for fate in (KEPT, CUT, REMOVED))
    censored = sum(e.censored for e in story.events if e.fate == KEPT)
    if not story.events:
        return "No earlier event: the ranker sees the impression alone."
    text = (
        f"{len(story.history)} of {len(story.events)} earlier events are in the history. Mask {story.mask_version} "
        f"({story.mask_status}) keeps {kept}, removes {removed} of dropped streams and cuts {cut} older ones."
    )
    if story.holdout:
        text += " The user is in the hold-out, whose histories no mask touches."
    return text + (
        f" {censored} of the kept ones were the last of their session (censored dwell)." * bool(censored)
    )


def lines(story: Story) -> list[str]:
    """The story as text for a terminal."""
    outcome = {True: "yes", False: "no", None: "not known"}[story.outcome]
    found = [
        f"impression of the {story.part} part, {story.rule}; segment {story.segment_id} ({story.segment_name}), "
        f"{story.tier}; {story.label} afterwards: {outcome}",
        summary(story),
    ]
    counts = by_stream(story)
    if counts:
        width = max(len(c.stream) for c in counts)
        found += ["", f"{'':{width}}    kept   cut  removed  boosted  censored  outside the history"]
        found += [
            f"{c.stream:{width}}  {c.kept:6d}{c.cut:6d}{c.removed:9d}{c.boosted:9d}{c.censored:10d}{c.outside:9d}"
            for c in counts
        ]
        newest = sorted(story.history, key=lambda e: e.age_s)[:NEWEST]
        found += ["", f"the newest {len(newest)} events of the history"]
        found += [f"  {ago(e.age_s):>15}  {e.stream:{width}}  {said(e)}" for e in newest]
    return [*found, "", *_waterfall_lines(story)]


def said(event: Past) -> str:
    """Its fate and what is to say of its dwell."""
    text = event.fate + (", boosted" if event.boosted else "")
    return text + (", censored" if event.censored else "" if event.usable else ", no dwell known")


def _waterfall_lines(story: Story) -> list[str]:
    score = story.score
    if score is None:
        return [f"from base rate to score: not measured, {story.untold}"]
    width = max(len(BASE), *(len(bar.name) for bar in score.bars))
    return [
        f"from base rate to score of {score.head!r} by {score.model}, which serves with mask {score.model_mask}",
        f"  {BASE:{width}}  {percent(score.base):>9}",
        *[f"  {bar.name:{width}}  {points(bar.adds):>9}" for bar in score.bars],
        f"  {'score':{width}}  {percent(score.score):>9}",
        *_masked_line(score),
    ]


def _masked_line(score: Score) -> list[str]:
    if score.masked is None:
        return []
    return [f"without what the mask takes away the same model says {percent(score.masked)}"]


def percent(p: float) -> str:
    """A probability in per cent with two decimals."""
    return f"{100 * p:.2f} %"


def points(difference: float) -> str:
    """A difference of probabilities in percentage points with its sign."""
    return f"{100 * difference:+.2f} pp"


def ago(seconds: float) -> str:
    """How long before, in the largest unit of which there are two.

    >>> ago(90), ago(7300), ago(5 * 86400)
    ('90 s before', '2 h before', '5 d before')
    """
    for name, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {name} before"
    return f"{seconds:.0f} s before"
