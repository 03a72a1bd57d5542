"""What became of a source's rows in numbers, and when that is too bad to go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from dynamix.config import Config
from dynamix.errors import DynamixError, InputError
from dynamix.features.copies import DEDUPLICATED, KEPT, QUARANTINED
from dynamix.features.events import RawSplit
from dynamix.features.instants import BARE_NUMBER
from dynamix.features.raw import undeclared_unit


@dataclass(frozen=True)
class Source:
    """Raw rows under canonical names with what the caller allows."""

    name: str
    raw: DataFrame
    definition: str
    allow_empty: bool
    rebuild: bool


@dataclass(frozen=True)
class Tally:
    """Row counts of a source: read = kept + deduplicated + quarantined, reasons add up to quarantined.

    `untimed` of the quarantined rows have no readable time: every run reads them again.
    """

    read: int
    kept: int
    deduplicated: int
    reasons: Mapping[str, int]
    bad_dwell: int
    first_event: datetime | None
    bare_numbers: int
    untimed: int = 0

    @property
    def quarantined(self) -> int:
        return sum(self.reasons.values())

    @property
    def timed(self) -> int:
        return self.read - self.untimed

    def counters(self) -> dict[str, int]:
        return {
            "rows_read": self.read,
            "rows_kept": self.kept,
            "rows_deduplicated": self.deduplicated,
            "rows_quarantined": self.quarantined,
            "bad_dwell": self.bad_dwell,
            **{f"quarantined_{reason}": n for reason, n in sorted(self.reasons.items())},
        }


def without_untimed(tally: Tally, before: DataFrame) -> Tally:
    """The tally less rows without a readable time that an earlier run has quarantined."""
    seen = {
        row["reason"]: row["n"] for row in before.groupBy("reason").agg(F.sum("copies").alias("n")).collect()
    }
    reasons = {name: n - seen.get(name, 0) for name, n in tally.reasons.items()}
    known = sum(seen.values())
    return replace(
        tally,
        read=tally.read - known,
        reasons={k: n for k, n in reasons.items() if n},
        untimed=tally.untimed - known,
    )


def tally_rows(split: RawSplit) -> Tally:
    bare = F.count_if(F.col("hint").contains(BARE_NUMBER))
    rows = (
        split.judged.groupBy("fate", "reason")
        .agg(
            F.count(F.lit(1)).alias("n"),
            F.count_if("bad_dwell").alias("bad"),
            F.min("event_ts").alias("first"),
            F.count_if(F.col("seen_us").isNull()).alias("untimed"),
            bare.alias("bare"),
        )
        .collect()
    )
    n = {row["fate"]: row["n"] for row in rows if row["fate"] != QUARANTINED}
    kept = [row for row in rows if row["fate"] == KEPT]
    tally = Tally(
        read=split.seen.count(),  # counted apart, so that the balance is a check and not a definition
        kept=n.get(KEPT, 0),
        deduplicated=n.get(DEDUPLICATED, 0),
        reasons={row["reason"]: row["n"] for row in rows if row["fate"] == QUARANTINED},
        bad_dwell=sum(row["bad"] for row in kept),
        first_event=kept[0]["first"] if kept else None,
        bare_numbers=sum(row["bare"] for row in rows),
        untimed=sum(row["untimed"] for row in rows),
    )
    if tally.read != tally.kept + tally.deduplicated + tally.quarantined:
        raise DynamixError(
            f"rows do not balance: {balance_line(tally)}; the source changed while it was read, run again"
        )
    return tally


def refuse_bad_source(tally: Tally, origin: Source, config: Config) -> None:
    source = origin.name
    if tally.read == 0:
        if origin.allow_empty:
            return
        raise InputError.empty(f"{source} (before the run date)")
    share = tally.quarantined / tally.read
    if share <= config.max_quarantined:
        return
    if tally.bare_numbers > tally.quarantined / 2:
        raise undeclared_unit(source, config.columns.get("event_ts", "event_ts"), "text of digits", None)
    reasons = ", ".join(
        f"{name} {n}" for name, n in sorted(tally.reasons.items(), key=lambda r: (-r[1], r[0]))
    )
    raise InputError.too_much_quarantined(source, share, config.max_quarantined, reasons)


def balance_line(tally: Tally) -> str:
    return (
        f"{tally.read} rows read = {tally.kept} kept + {tally.deduplicated} deduplicated "
        f"+ {tally.quarantined} quarantined"
    )
