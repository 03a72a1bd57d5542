"""Users with more events than one task should hold: where their time is cut, and what lies beside each cut.

Nothing but speed and memory depends on who is hot: the parts of a cut user merge exactly (features/fragments.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from dynamix.config import Config
from dynamix.errors import GuardError
from dynamix.features.events import takes_part
from dynamix.features.fragments import ABSENT, Border, Spans, border, merge_spans, spans
from dynamix.features.numbers import Ints
from dynamix.features.timeline import codes

HOT_ROWS = 1_000_000
"""Events that make a user hot; about as many go into each of its ranges."""
_SAMPLE = 1 / 16
_HOUR_US = 3_600_000_000
_FOUND = "user_id string, hour bigint, low bigint, high bigint, n bigint"


@dataclass(frozen=True)
class HotUsers:
    """U hot users cut into R ranges of time; a range is floor(µs / width)."""

    names: tuple[str, ...]
    width_us: Ints
    """(U,) whole hours."""
    owner: Ints
    """(R,) place in `names`, rising."""
    place: Ints
    """(R,) the range, rising within the owner; ranges without events are not here."""
    border: Border

    def ranges(self, users: Any, user: Ints, us: Ints) -> Ints | None:
        """Range of each event counted from the first hot one, −1 for other users; None where all are other users."""
        own = self.among(users)[user]
        if (own < 0).all():
            return None
        found = us // self.width_us[np.maximum(own, 0)]
        return np.where(own < 0, -1, found - int(found[own >= 0].min()))

    def borders(self, users: Any, user: Ints, us: Ints, line: Ints) -> Border | None:
        """What lies outside each line of a sorted block; None where no user of it is cut."""
        own = self.among(users)
        heads = np.flatnonzero(np.concatenate([[True], line[1:] != line[:-1]])) if len(line) else line
        own = own[user[heads]]
        cut = np.flatnonzero(own >= 0)
        if not len(cut):
            return None
        rows = self._rows(own[cut], us[heads[cut]] // self.width_us[own[cut]])
        found = [np.full(len(heads), ABSENT) for _ in range(3)]
        known = (self.border.before, self.border.first, self.border.after)
        for values, each in zip(found, known, strict=True):
            values[cut] = each[rows]
        return Border(*found)

    def _rows(self, owner: Ints, place: Ints) -> Ints:
        """Row of each (user, range) asked for."""
        low = int(self.place.min())
        span = int(self.place.max()) - low + 1
        known, asked = self.owner * span + self.place - low, owner * span + place - low
        rows = np.searchsorted(known, asked) % len(known)
        inside = (place >= low) & (place < low + span)
        if not (inside & (known[rows] == asked)).all():
            raise GuardError(
                "hot users were found on other events than these; call hot_users on the same frame"
            )
        return rows

    def key(self, us: Column) -> Column:
        """What shuffles together: a user, or a range of a hot one."""
        reach = F.lit(-1).cast("bigint")
        for name, width in zip(self.names, self.width_us.tolist(), strict=True):
            cut = (us - F.pmod(us, F.lit(width))) / F.lit(width)  # a whole number, also as a double
            reach = F.when(F.col("user_id") == F.lit(name), F.round(cut).cast("bigint")).otherwise(reach)
        return F.xxhash64("user_id", reach)

    def among(self, users: Any) -> Ints:
        """Place of each of the users in `names`, −1 for the others."""
        return np.asarray(pc.fill_null(pc.index_in(users, pa.array(self.names, users.type)), -1)).astype(
            np.int64
        )


def hot_users(events: DataFrame, *, config: Config, above: int = HOT_ROWS) -> HotUsers | None:
    """Users with more than about `above` events of sessions (by a sample of one in 16), None where there are none.

    Two actions at most: a count over the sample, and one pass over the events of those it finds. Under the rule
    `given` nobody is cut: silences do not part such sessions.
    """
    if config.session.rule == "given":
        return None
    some = events.where(takes_part(config)).select("user_id", F.unix_micros("event_ts").alias("us"))
    counted = some.select("user_id").sample(_SAMPLE, seed=0).groupBy("user_id").count()
    many = [row["user_id"] for row in counted.where(F.col("count") > above * _SAMPLE).collect()]
    if not many:
        return None
    gap_us = int(config.session.gap_s * 1e6)

    def run(batches: Iterator[Any]) -> Iterator[Any]:
        yield from _active(batches, gap_us).to_batches()

    return cut_hot(
        some.where(F.col("user_id").isin(many)).mapInArrow(run, _FOUND).toArrow(), gap_us=gap_us, above=above
    )


def _active(batches: Iterator[Any], gap_us: int) -> Any:
    """Rows of _FOUND for the events of a task: spans (hour NULL), and first, last and number per hour."""
    found = [_active_batch(pa.Table.from_batches([batch]), gap_us) for batch in batches]
    empty = pa.table(
        {name: pa.array([], kind) for name, kind in zip(_FOUND_NAMES, _FOUND_TYPES, strict=True)}
    )
    return pa.concat_tables([empty, *found])


_FOUND_NAMES = ("user_id", "hour", "low", "high", "n")
_FOUND_TYPES = (pa.string(), pa.int64(), pa.int64(), pa.int64(), pa.int64())


def _active_batch(table: Any, gap_us: int) -> Any:
    user, users = codes(table.column("user_id"))
    us = np.asarray(table.column("us").combine_chunks())
    if not len(us):
        return pa.table(
            {name: pa.array([], kind) for name, kind in zip(_FOUND_NAMES, _FOUND_TYPES, strict=True)}
        )
    chains = spans(user, us, gap_us=gap_us)
    hour = us // _HOUR_US
    base, width = int(hour.min()), int(hour.max()) - int(hour.min()) + 1
    key = user * width + hour - base
    order = np.lexsort((us, key))
    starts = np.flatnonzero(np.concatenate([[True], key[order][1:] != key[order][:-1]]))
    last = np.append(starts[1:], len(us)) - 1
    cell = key[order][starts]
    rows = len(chains.line)
    columns = (
        users.take(pa.array(np.concatenate([chains.line, cell // width]))),
        pa.array(
            np.concatenate([np.zeros(rows, dtype=np.int64), cell % width + base]),
            mask=np.arange(rows + len(cell)) < rows,
        ),
        pa.array(np.concatenate([chains.start, us[order][starts]])),
        pa.array(np.concatenate([chains.end, us[order][last]])),
        pa.array(np.concatenate([np.zeros(rows, dtype=np.int64), last - starts + 1])),
    )
    return pa.table(dict(zip(_FOUND_NAMES, columns, strict=True)))


def cut_hot(found: Any, *, gap_us: int, above: int) -> HotUsers:
    """Ranges and borders from the rows of all tasks (columns of _FOUND), in any order."""
    user, users = codes(found.column("user_id"))
    low, high, n = (np.asarray(found.column(name).combine_chunks()) for name in ("low", "high", "n"))
    span = np.asarray(pc.is_null(found.column("hour").combine_chunks()))
    chains = merge_spans([Spans(user[span], low[span], high[span])], gap_us=gap_us)
    user, low, high, n = (x[~span] for x in (user, low, high, n))
    first, last = (np.full(len(users), limit) for limit in (np.iinfo(np.int64).max, ABSENT))
    np.minimum.at(first, user, low)
    np.maximum.at(last, user, high)
    hours = (last - first) // _HOUR_US + 1
    total = np.bincount(user, weights=n, minlength=len(users)).astype(np.int64)
    width = np.maximum(hours * above // np.maximum(total, above), 1) * _HOUR_US
    place = low // width[user]
    order = np.lexsort((low, place, user))
    user, place, low, high = user[order], place[order], low[order], high[order]
    starts = np.flatnonzero(np.concatenate([[True], (user[1:] != user[:-1]) | (place[1:] != place[:-1])]))
    owner, begin, end = user[starts], low[starts], np.maximum.reduceat(high, starts)
    same = owner[1:] == owner[:-1]
    before = np.concatenate([[ABSENT], np.where(same, end[:-1], ABSENT)])
    after = np.concatenate([np.where(same, begin[1:], ABSENT), [ABSENT]])
    return HotUsers(
        tuple(users.to_pylist()), width, owner, place[starts], border(chains, owner, before, after)
    )
