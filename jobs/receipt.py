"""The receipt: what a cycle found, in plain words and with its uncertainty (docs: interface, "The receipt").

Negative NE changes are better. A sentence about a number that was not measured says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from dynamix.jobs.evidence_data import Arm, Evidence
from dynamix.jobs.heatmap import STRONG, counts
from dynamix.jobs.numbers import pct
from dynamix.jobs.report_data import Cell, ReportData
from dynamix.jobs.savings import savings

DEFAULT_DEFF = 1.4
"""Variance inflation by users where no cell measured its own (docs/method.md A.7, table)."""
INTERVAL = "95 % interval by users"
ENOUGH = "One mask for everybody does as well, as far as these rows can tell; the simpler one is enough."
ONE_IS_BETTER = "One mask for everybody is better."


def receipt(data: ReportData) -> list[str]:
    """One sentence group a line: label, removal, NE, savings, undecided cells, one mask, where to look."""
    if not data.cells:
        return [f"No mask version yet: nothing was decided. {_label_line(data)} Run dynamix mask next."]
    lines = [
        _label_line(data),
        *([data.notice] if data.notice else []),
        removal(data),
        ne_change(data),
        *savings(data),
        undecided(data),
        one_mask(data),
    ]
    return [*lines, look_first(data)]


def _label_line(data: ReportData) -> str:
    return f"Label: “{data.label}” means {data.label_meaning}; every figure below is about that."


# --- removal ---------------------------------------------------------------------------------------


def cell_weights(data: ReportData) -> dict[tuple[int, str], float]:
    """Share of impressions (else of users) of each segment and tier among the mask's cells; sums to 1."""
    by_segment = data.weights()
    users = {s.segment_id: s.users for s in data.segments}
    tiers: dict[int, list[str]] = {}
    for cell in data.cells:
        listed = tiers.setdefault(cell.segment_id, [])
        if cell.tier not in listed:
            listed.append(cell.tier)
    weights: dict[tuple[int, str], float] = {}
    for segment, names in tiers.items():
        within = {t: float(users.get(segment, {}).get(t, 0)) for t in names if t != "*"}
        total = sum(within.values())
        for tier in names:
            if tier == "*":
                share = 1.0 if names == ["*"] else 1.0 / len(names)
            else:
                share = within[tier] / total if total else 1.0 / len(names)
            weights[segment, tier] = by_segment.get(segment, 0.0) * share
    return weights


def token_shares(data: ReportData) -> tuple[float, float, float] | None:
    """Tokens that go: share of all, share among touched users, and the share of users touched.

    Fractions; None when no cell has tokens. Quotas of kept cells are not counted.
    """
    weights = cell_weights(data)
    touched = {(c.segment_id, c.tier) for c in data.cells if not c.keep}
    everything = sum(weights[c.segment_id, c.tier] * c.tokens for c in data.cells)
    gone = sum(weights[c.segment_id, c.tier] * c.tokens for c in data.cells if not c.keep)
    theirs = sum(
        weights[c.segment_id, c.tier] * c.tokens for c in data.cells if (c.segment_id, c.tier) in touched
    )
    if everything <= 0:
        return None
    return gone / everything, (gone / theirs if theirs else 0.0), _users_of(data, touched, weights)


def _users_of(data: ReportData, places: set[tuple[int, str]], weights: dict[tuple[int, str], float]) -> float:
    total = sum(s.total for s in data.segments)
    if not total:
        return sum(weights[p] for p in places)
    users = {s.segment_id: s for s in data.segments}
    found = 0
    for segment, tier in places:
        info = users.get(segment)
        if info is not None:
            found += info.total if tier == "*" else info.users.get(tier, 0)
    return found / total


def removal(data: ReportData) -> str:
    """Which share of events can go for which share of users."""
    count = counts(data.cells)
    total = len(data.cells)
    dropped = sum(not c.keep for c in data.cells)
    cut = sum(c.cut for c in data.cells)
    if not dropped and not cut:
        return (
            f"Nothing can go yet: of {total} cells (segment × stream) none could be shown to be negligible within "
            f"the NE budget of {pct(data.ne_budget)}. {count['keep'] + count['boost']} are needed, "
            f"{count['undecided']} are undecided and stay."
        )
    shares = token_shares(data)
    head = (
        f"{dropped} of {total} cells (segment × stream) can go within an NE budget of {pct(data.ne_budget)}"
    )
    if cut:
        head += f", and of {cut} more the older events"
    if count["boost"]:
        head += f"; {count['boost']} keep a longer history for it (boost)"
    if shares is None:
        return f"{head}; how many events that is was not measured."
    gone, theirs, users = shares
    return (
        f"{head}: whole cells are {pct(theirs)} of the events in the histories of {pct(users)} of the users, "
        f"{pct(gone)} over all users (effects above {data.delta:g} log-odds per SD are excluded)."
    )


# --- NE ------------------------------------------------------------------------------------------


def ne_change(data: ReportData) -> str:
    """Expected NE change with its interval, and what these rows can resolve."""
    e = data.evidence
    if e is None or e.delta_ne_pct is None:
        return (
            "Expected NE change: not measured, no ranker was compared under this mask; the rule may spend at most "
            f"{pct(data.ne_budget)} NE by its statistics."
        )
    rows = f"{e.rows:,} {e.part or 'validation'} rows" if e.rows is not None else "the validation rows"
    rows += f" with {e.positives:,} positives" if e.positives is not None else ""
    text = f"Expected NE change when masked, on {rows}: {e.delta_ne_pct:+.3f} % (negative is better)"
    if e.ci is None:
        text += ", interval not measured."
    else:
        text += f", {INTERVAL}: {e.ci[0]:+.3f} to {e.ci[1]:+.3f} %"
        text += "; it includes zero, so no change was shown." if e.ci[0] <= 0 <= e.ci[1] else "."
    if e.resolvable_pct is not None:
        text += (
            f" These rows can resolve {e.resolvable_pct:.3f} %; a smaller change cannot be told from none."
        )
    else:
        text += " What these rows can resolve was not measured."
    return text + _decision(e)


def _decision(e: Evidence) -> str:
    if not e.decision:
        return ""
    if e.reason.startswith(e.decision):
        return f" Decision: {e.reason}."
    return f" Decision: {e.decision}{f' ({e.reason})' if e.reason else ''}."


# --- undecided -----------------------------------------------------------------------------------


def design_effects(data: ReportData) -> dict[tuple[int, str], float]:
    """Largest variance inflation by users (V / I of a channel, at least 1) of each segment and stream."""
    found: dict[tuple[int, str], float] = {}
    for c in data.channels:
        if c.channel == "joint" or c.label != data.label or not c.information or c.score_var is None:
            continue
        key = (c.segment_id, c.stream)
        found[key] = max(found.get(key, 1.0), c.score_var / c.information)
    return found


def days_needed(data: ReportData, cell: Cell, *, effects: dict[tuple[int, str], float]) -> float | None:
    """Days of statistics until the cell has the positives of docs/method.md A.7 rule 2, at today's rate.

    n1 >= (support / delta)^2 * deff. None when the cell has no positive or the window's length is unknown.
    """
    if not cell.positives or not data.statistics_days:
        return None
    deff = effects.get((cell.segment_id, cell.stream), DEFAULT_DEFF)
    return data.statistics_days * (data.support / data.delta) ** 2 * deff / cell.positives


def undecided(data: ReportData) -> str:
    """How many cells are undecided, and how many days of data give them the positives that a verdict needs."""
    open_cells = [c for c in data.cells if c.verdict == "undecided"]
    if not open_cells:
        return "No cell is undecided."
    head = f"{len(open_cells)} of {len(data.cells)} cells are undecided and kept."
    effects = design_effects(data)
    needed = [(c, days_needed(data, c, effects=effects)) for c in open_cells]
    known = [(c, d) for c, d in needed if d is not None]
    if data.statistics_days is None:
        return f"{head} How many days would decide them was not measured."
    short = sorted(d for _, d in known if d > data.statistics_days)
    ready = len(known) - len(short)
    parts = [head]
    if short:
        parts.append(
            f"{len(short)} lack positives: at today's rate half of them have enough after {median(short):.0f} days of "
            f"statistics and all after {max(short):.0f} (now {data.statistics_days:.0f})."
        )
    if ready:
        parts.append(
            f"{ready} have enough positives for one cell; their intervals still reach past ±{data.delta:g}, or the "
            "total budget is spent: more days narrow them, their reasons say which."
        )
    if len(known) < len(open_cells):
        parts.append(
            f"{len(open_cells) - len(known)} have no positive at all: no number of days can be named."
        )
    return " ".join(parts)


# --- one mask ------------------------------------------------------------------------------------


def same_for_all(cells: Sequence[Cell]) -> bool:
    """True iff every stream is kept everywhere or dropped everywhere."""
    kept: dict[str, set[bool]] = {}
    for cell in cells:
        kept.setdefault(cell.stream, set()).add(cell.keep)
    return all(len(found) == 1 for found in kept.values())


def one_mask(data: ReportData) -> str:
    """What one mask for everybody would have done; says so where it does as well."""
    return _one_mask(data)[0]


def one_mask_would_do(data: ReportData) -> bool:
    """True where masks per segment are not shown to be better than one mask that removes as much."""
    return bool(data.cells) and _one_mask(data)[1]


def _one_mask(data: ReportData) -> tuple[str, bool]:
    if len({c.segment_id for c in data.cells} - {0}) <= 1:
        return "There is only one segment: this mask is one mask for everybody.", True
    if same_for_all(data.cells):
        return "The mask is the same in every segment: one mask for everybody does exactly as well.", True
    e = data.evidence
    one, masked = (e.one_mask, e.masked) if e is not None else (None, None)
    if e is None or one is None or masked is None or one.ne is None or masked.ne is None:
        return "One mask for everybody: not measured, that arm was not trained.", False
    gap = 100 * (masked.ne / one.ne - 1) if e.worth_pct is None else e.worth_pct
    text = f"One mask for everybody: NE {one.ne:.4f}{_tokens_of(one)}; per segment {masked.ne:.4f}{_tokens_of(masked)}"
    text += f", a difference of {gap:+.3f} %"
    verdict, basis = _tells(e, one, masked)
    return f"{text}{basis}. {verdict}", verdict in (ENOUGH, ONE_IS_BETTER)


def _tokens_of(arm: Arm) -> str:
    return "" if arm.tokens is None else f" at {arm.tokens:.1f} tokens"


def _tells(e: Evidence, one: Arm, masked: Arm) -> tuple[str, str]:
    as_well = ENOUGH
    fewer = one.tokens is None or masked.tokens is None or one.tokens <= masked.tokens * 1.01
    if not fewer:
        as_well = "NE does not tell them apart; the masks per segment remove more tokens."
    if e.worth_ci is not None:
        low, high = e.worth_ci
        basis = f" ({INTERVAL}: {low:+.3f} to {high:+.3f} %)"
        if low <= 0 <= high:
            return as_well, basis
        return ("Masks per segment are better." if high < 0 else ONE_IS_BETTER), basis
    if None in (one.ne_low, one.ne_high, masked.ne_low, masked.ne_high):
        return "Whether that is more than chance was not measured.", ""
    assert (
        one.ne_low is not None and one.ne_high is not None
    )  # checked in the line above, for the type checker
    assert masked.ne_low is not None and masked.ne_high is not None
    if masked.ne_low <= one.ne_high and one.ne_low <= masked.ne_high:
        return as_well, " (their 95 % intervals overlap)"
    assert one.ne is not None and masked.ne is not None
    return ("Masks per segment are better." if masked.ne < one.ne else ONE_IS_BETTER), ""


# --- where to look -------------------------------------------------------------------------------


def look_first(data: ReportData) -> str:
    """The one place that deserves a reader's first minute."""
    wrong = [c for c in data.cells if not c.keep and data.truth.get((c.segment_id, c.stream)) in STRONG]
    if wrong:
        worst = wrong[0]
        kind = data.truth[worst.segment_id, worst.stream]
        return f"Look first at {name(worst)}: it was dropped although its planted effect is {kind}."
    weights = cell_weights(data)
    open_cells = [c for c in data.cells if c.verdict == "undecided"]
    if open_cells:
        top = max(open_cells, key=lambda c: (weights[c.segment_id, c.tier] * c.tokens, c.stream))
        return (
            f"Look first at {name(top)}: of the undecided cells it holds the most events "
            f"({top.tokens:.1f} an impression). {top.reason}"
        ).rstrip()
    dropped = [c for c in data.cells if not c.keep]
    if dropped:
        top = max(dropped, key=lambda c: (c.relevance_ucb or 0.0, c.stream))
        bound = "bound not measured" if top.relevance_ucb is None else f"bound {pct(top.relevance_ucb)} of H"
        return f"Look first at {name(top)}: of the dropped cells it may matter most ({bound}). {top.reason}".rstrip()
    return "Look first at the table of cells: every cell is shown to be needed, so there is nothing to save here."


def name(cell: Cell) -> str:
    """Segment and stream in words."""
    tier = "" if cell.tier == "*" else f", {cell.tier} users"
    return f"“{cell.stream}” in segment {cell.segment_id} ({cell.segment_name}{tier})"
