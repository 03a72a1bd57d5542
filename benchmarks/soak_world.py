"""The world of the soak: a simulated log as a busy source delivers it, in a file for every day.

The rows of `dynamix simulate` with clicks added; some come days late, again, torn, or under the id of another payload;
a bot views without a pause for some days; the source gains a column; and a part of one day is lost and found later.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from dynamix.features.calendar import DAY_US
from dynamix.features.simulate import CONFIG, simulate
from dynamix.features.sources.output import TIMESTAMP, write_config

START = date(2026, 1, 5)
BOT = "bot"
NEW_COLUMN = "app_version"
_SECOND_US, _HOUR_US = 1_000_000, 3_600_000_000
_BOT_PAUSE_US = 60 * _SECOND_US


@dataclass(frozen=True)
class Shares:
    """Parts of the rows that are not as they should be; `clicks` is one of the impressions."""

    clicks: float = 0.04
    late: float = 0.04
    again: float = 0.02
    other: float = 0.01
    torn: float = 0.005


@dataclass(frozen=True)
class Plan:
    """A soak: `before` days that lie there already, then `days` that are run one by one, numbered from 1."""

    days: int = 30
    before: int = 14
    users: int = 300
    seed: int = 0
    late_hours: int = 80
    """Late rows come up to so many hours after their event."""

    def __post_init__(self) -> None:
        if self.days < 4:
            raise SystemExit(f"a soak of {self.days} days; allowed: 4 or more, for a crash and a backfill")

    def run_date(self, day: int) -> date:
        """The run date that sees all that was delivered up to the day; day 0 is the history."""
        return START + timedelta(days=self.before + day)

    @property
    def bot_days(self) -> range:
        first = max(2, self.days // 3)
        return range(first, first + 5)

    @property
    def new_column_day(self) -> int:
        """The first day whose file has the new column."""
        return self.days // 2 + 1

    @property
    def found_day(self) -> int:
        """When the lost rows are found and the day they belong to is run again."""
        return max(3, 2 * self.days // 5)

    @property
    def lost_day(self) -> int:
        """A part of this day's rows is not in its delivery."""
        return self.found_day - 2

    def is_weekly(self, day: int) -> bool:
        """Segments, masks, model and scores are made anew on this day."""
        return day > 0 and day % 7 == 0


@dataclass(frozen=True)
class Delivery:
    """A file of raw rows that appears in the source on a day."""

    day: int
    name: str
    rows: pa.Table


def write_world(folder: Path, plan: Plan) -> list[tuple[int, Path]]:
    """(day, file) of every delivery of the plan, with the world's dynamix.yaml beside; written once."""
    done = folder / "deliveries"
    if not done.is_dir():
        simulate(
            folder / "simulated", preset="S0", users=plan.users, days=plan.before + plan.days, seed=plan.seed,
            start=START,
        )  # fmt: skip
        events = pads.dataset(folder / "simulated" / "events", format="parquet").to_table()
        draft = folder / "draft"
        draft.mkdir(exist_ok=True)
        for delivery in deliveries(events, plan):
            pq.write_table(delivery.rows, draft / delivery.name)
        write_config({**CONFIG, "click_types": ["click"]}, folder / "dynamix.yaml", comment=f"a soak, {plan}")
        draft.rename(done)
    return [(int(path.name[:3]), path) for path in sorted(done.glob("*.parquet"))]


def deliveries(events: pa.Table, plan: Plan, shares: Shares | None = None) -> list[Delivery]:
    """What the source delivers on day 0, 1, …: a row comes on the day from which a run can see it.

    `events` has the raw columns, `event_ts` in UTC from START on. Rows seen after the last day never come. Equal
    arguments give equal rows.
    """
    shares = shares or Shares()
    rng = np.random.default_rng([plan.seed, 7])
    told = pa.concat_tables([events, _clicks(events, shares, rng), _bot(events, plan)])
    told = _ingested(told, shares, plan, rng)
    parts = [told, _again(told, shares, rng), _other(told, shares, rng)]
    seen = [_seen_us(part) for part in parts]
    chosen = _drawn(told.num_rows, shares.torn, rng)
    parts.append(_torn(told.take(pa.array(chosen)), rng))
    seen.append(seen[0][chosen])  # with the row that it was
    rows, at = pa.concat_tables(parts), np.concatenate(seen)
    day = np.maximum((at - _us(START)) // DAY_US - plan.before + 1, 0)
    lost = (day == plan.lost_day) & _lost_users(rows)
    found = []
    for number in range(plan.days + 1):
        found.append(
            _delivery(rows, (day == number) & ~lost, number, f"{number:03d}.parquet", plan.new_column_day)
        )
        if number == plan.found_day:
            found.append(_delivery(rows, lost, number, f"{number:03d}-found.parquet", plan.days + 1))
    return found


def _delivery(rows: pa.Table, chosen: np.ndarray, day: int, name: str, new_column_day: int) -> Delivery:
    table = rows.filter(pa.array(chosen))
    if day >= new_column_day:
        table = table.append_column(NEW_COLUMN, pa.array([f"2.{day}"] * table.num_rows, pa.string()))
    return Delivery(day, name, table)


def _us(day: date) -> int:
    return (day - date(1970, 1, 1)).days * DAY_US


def _drawn(n: int, share: float, rng: np.random.Generator) -> np.ndarray:
    return np.flatnonzero(rng.random(n) < share)


def _instants(table: pa.Table, name: str) -> np.ndarray:
    """Microseconds since 1970 of a column without NULLs."""
    return np.asarray(table[name].cast(pa.int64()))


def _seen_us(table: pa.Table) -> np.ndarray:
    return np.maximum(_instants(table, "event_ts"), _instants(table, "ingest_ts"))


def _with(table: pa.Table, **columns: pa.Array) -> pa.Table:
    for name, values in columns.items():
        index = table.column_names.index(name)
        table = table.set_column(index, name, values.cast(table.schema.field(name).type))
    return table


def _times(values: np.ndarray) -> pa.Array:
    return pa.array(values.astype(np.int64)).cast(TIMESTAMP)


def _clicks(events: pa.Table, shares: Shares, rng: np.random.Generator) -> pa.Table:
    """Clicks seconds after some of the impressions, of the same request and item."""
    shown = events.filter(pc.equal(events["event_type"], "impression"))
    shown = shown.take(pa.array(_drawn(shown.num_rows, shares.clicks, rng)))
    n = shown.num_rows
    at = _instants(shown, "event_ts") + rng.integers(1, 40, n) * _SECOND_US
    return _with(
        shown,
        event_ts=_times(at), event_type=pa.array(["click"] * n, pa.string()),
        event_id=pc.binary_join_element_wise(shown["event_id"], "click", "-"),
    )  # fmt: skip


def _bot(events: pa.Table, plan: Plan) -> pa.Table:
    """One user who looks at a page a minute, around the clock, on the bot's days."""
    days = [START + timedelta(days=plan.before + day - 1) for day in plan.bot_days if day <= plan.days]
    at = np.concatenate([np.arange(_us(day), _us(day) + DAY_US, _BOT_PAUSE_US) for day in days])
    paged = pc.invert(pc.is_in(events["event_type"], pa.array(["impression", "click", "conversion"])))
    row = events.filter(paged).slice(0, 1)
    rows = row.take(pa.array(np.zeros(len(at), np.int64)))
    return _with(
        rows,
        user_id=pa.array([BOT] * len(at), pa.string()), event_ts=_times(at),
        event_id=pa.array([f"{BOT}-{k}" for k in range(len(at))]),
    )  # fmt: skip


def _ingested(rows: pa.Table, shares: Shares, plan: Plan, rng: np.random.Generator) -> pa.Table:
    """ingest_ts within seconds of the event, and of late rows within `late_hours`."""
    delay = rng.integers(0, 4, rows.num_rows) * _SECOND_US
    late = _drawn(rows.num_rows, shares.late, rng)
    delay[late] += rng.integers(1, plan.late_hours + 1, len(late)) * _HOUR_US
    return _with(rows, ingest_ts=_times(_instants(rows, "event_ts") + delay))


def _again(rows: pa.Table, shares: Shares, rng: np.random.Generator) -> pa.Table:
    """Copies with the same payload, ingested at once or up to two days later."""
    copies = rows.take(pa.array(_drawn(rows.num_rows, shares.again, rng)))
    later = rng.integers(0, 49, copies.num_rows) * _HOUR_US
    return _with(copies, ingest_ts=_times(_instants(copies, "ingest_ts") + later))


def _other(rows: pa.Table, shares: Shares, rng: np.random.Generator) -> pa.Table:
    """Another item under the same event_id; half of them at the very ingest of the first, so that neither is believed."""
    copies = rows.take(pa.array(_drawn(rows.num_rows, shares.other, rng)))
    later = rng.choice([0, 1, 30, 50], copies.num_rows, p=[0.5, 0.2, 0.2, 0.1]) * _HOUR_US
    at = _times(_instants(copies, "ingest_ts") + later)
    return _with(copies, ingest_ts=at, item_id=pa.array(["another"] * copies.num_rows, pa.string()))


def _torn(rows: pa.Table, rng: np.random.Generator) -> pa.Table:
    """Rows under ids of their own that lack their time, both times, or their user."""
    kind = rng.integers(0, 3, rows.num_rows)
    no_time, no_times, no_user = (pa.array(kind == k) for k in range(3))
    empty = pa.scalar(None, TIMESTAMP)
    return _with(
        rows,
        event_ts=pc.if_else(pc.or_(no_time, no_times), empty, rows["event_ts"]),
        ingest_ts=pc.if_else(no_times, empty, rows["ingest_ts"]),
        user_id=pc.if_else(no_user, "", rows["user_id"]),
        event_id=pc.binary_join_element_wise(rows["event_id"], "torn", "-"),
    )


def _lost_users(rows: pa.Table) -> np.ndarray:
    """True for rows of a fifth of the users."""
    return np.array([crc32(user.encode()) % 5 == 0 for user in rows["user_id"].to_pylist()], bool)
