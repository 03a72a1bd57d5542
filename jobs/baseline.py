"""What the events table says of itself: up to when it holds events, and the baseline frozen with it.

Stored as user metadata of the commit that wrote the events, so rows and statement are one transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime
from typing import Any

from dynamix.contracts import EVENTS
from dynamix.features.calendar import Calendar, Period
from dynamix.features.tables import Warehouse


@dataclass(frozen=True)
class Baseline:
    """Dwell caps, filled-in constants and the window behind them and mu, sigma, habits; frozen until the next refit.

    `habit` is false where the span was too short for a habit window. `fitted` is the run date that fitted it.
    """

    version: str
    start: datetime
    end: datetime
    habit: bool
    fitted: date
    caps_ms: Mapping[str, int]
    imputed_ms: Mapping[str, Sequence[int]]

    @classmethod
    def of(
        cls, calendar: Calendar, caps: Mapping[str, int], imputed: Mapping[str, Sequence[int]]
    ) -> Baseline:
        window = calendar.baseline
        habit = calendar.habit is not None
        return cls(
            calendar.baseline_version,
            window.start,
            window.end,
            habit,
            calendar.run_date,
            dict(caps),
            dict(imputed),
        )

    def freeze(self, calendar: Calendar) -> Calendar:
        """The calendar with this baseline and habit window in place of its own."""
        window = Period(self.start, self.end)
        return replace(
            calendar,
            baseline=window,
            habit=window if self.habit else None,
            baseline_version=self.version,
        )


@dataclass(frozen=True)
class Mark:
    """State of the events table: raw rows with a readable time before `until` were judged, `rows` of them.

    `kept` and `quarantined` of them (and of rows without a readable time) lie in the two tables. `since` and
    `rows_new` describe the last increment (None and `rows` after a whole build); `quarantine` is the version of
    events_quarantine written with it.
    """

    until: date
    rows: int
    kept: int
    quarantined: int
    rows_new: int
    since: date | None
    quarantine: int
    baseline: Baseline
    doubt: int = 0
    """So many of `rows` and `rows_new` may be copies of users who were forgotten since (jobs/recount.py)."""

    def agrees(self, behind: int, rows: int) -> bool:
        """True where a source with `behind` rows can be the one of which `rows` were read."""
        return behind == rows or (0 < behind < rows and rows - behind <= self.doubt)

    def note(self) -> dict[str, object]:
        return {"state": asdict(self)}


def stored_mark(warehouse: Warehouse) -> Mark | None:
    """The newest state of the events table, None where there is none."""
    note = warehouse.note(EVENTS.name, "state")
    if note is None:
        return None
    tree: dict[str, Any] = note["state"]
    base = tree["baseline"]
    baseline = Baseline(
        base["version"],
        datetime.fromisoformat(base["start"]),
        datetime.fromisoformat(base["end"]),
        bool(base["habit"]),
        date.fromisoformat(base["fitted"]),
        base["caps_ms"],
        base.get("imputed_ms", {}),  # events of before constants were looked for have none
    )
    since = tree["since"]
    return Mark(
        date.fromisoformat(tree["until"]),
        int(tree["rows"]),
        int(tree["kept"]),
        int(tree["quarantined"]),
        int(tree["rows_new"]),
        date.fromisoformat(since) if since else None,
        int(tree["quarantine"]),
        baseline,
        int(tree.get("doubt", 0)),  # commits of before `forget` have none
    )
