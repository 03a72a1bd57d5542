"""A stored segmenter that reads events, sessions and dwells: `neural` and `paper2` where there is no Spark.

The posterior at every midnight is that of segmentation/prefixes.py, as on Spark's executors (docs/method.md A.4.4).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dynamix.contracts import COLD_SEGMENT
from dynamix.models.segmenter import Floats, Ints, Past
from dynamix.segmentation.blocks import INPUT
from dynamix.segmentation.fitted import FittedSegmenter, load
from dynamix.segmentation.jagged import Bools, FlatEvents, jagged
from dynamix.segmentation.midnights import Rule, decide
from dynamix.segmentation.prefixes import DIGITS, DatedEvents, at_midnights

_STATES = 1_000_000
"""Posteriors (request × day × segment) held at once."""


@dataclass(frozen=True)
class EventSegmenter:
    """A fitted segmenter of events, the stable ids of its K segments, and when a user stays cold.

    `gap_s` is the silence that ends a session; `active_from` and `since_us` as of models/segmenter.py.
    """

    ids: tuple[int, ...]
    fitted: FittedSegmenter
    confidence: float
    min_events: int
    active_from: float
    gap_s: float
    since_us: int = 0

    @property
    def rule(self) -> Rule:
        return Rule(self.confidence, self.min_events, self.active_from)

    def to_tree(self) -> dict[str, Any]:
        """Plain data for JSON; `method` says which segmenter it is."""
        fitted = json.loads(self.fitted.to_json())
        return {**vars(self), "ids": list(self.ids), "fitted": fitted, "method": self.fitted.name}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> EventSegmenter:
        """The inverse of `to_tree`."""
        plain = {name: value for name, value in tree.items() if name != "method"}
        return cls(**{**plain, "ids": tuple(tree["ids"]), "fitted": load(json.dumps(tree["fitted"]))})

    def assign(self, past: Past, n: int) -> Ints:
        """Segment (n,) at 00:00 of each request's day, as `assign` of models/segmenter.py."""
        n_days = int(past.ago.max(initial=-1)) + 1
        found = np.full(n, COLD_SEGMENT, np.int64)
        size = max(1, _STATES // max(1, n_days * len(self.ids)))
        known = past.stream < self.fitted.n_streams  # a younger stream says nothing
        for start in range(0, n if n_days else 0, size):
            count = min(size, n - start)
            part = known & (past.row >= start) & (past.row < start + count)
            q, events = self._midnights(past, part, start, count, n_days)
            component = decide(q, events, self.rule)[:, -1]
            found[start : start + count] = np.array([*self.ids, COLD_SEGMENT])[component]
        return found

    def _midnights(self, past: Past, part: Bools, start: int, count: int, n_days: int) -> tuple[Floats, Ints]:
        """q (B, D + 1, K) and events (B, D + 1) from the midnight before the first event to that of the requests."""
        if past.ts_s is None or past.z is None:
            raise ValueError(
                f"a segmenter {self.fitted.name} reads instants and dwells; give Past.ts_s and Past.z"
            )
        flat = FlatEvents(
            past.row[part] - start, past.ts_s[part], past.stream[part], past.dwell_bin[part], past.z[part],
            np.zeros(int(part.sum()), np.int64),
        )  # fmt: skip
        dated = DatedEvents(pa.nulls(count, pa.string()), flat, n_days - 1 - past.ago[part])
        found = at_midnights(
            dated, self.fitted, n_days=n_days + 1, n_streams=self.fitted.n_streams, gap_s=self.gap_s
        )
        return found.q, found.events

    def segment_users(self, users: Any) -> dict[str, Any]:
        """segment_id of each user from `events`, all of them seen; no hysteresis.

        Events are structs of stream_id, dwell_bin, ts_s (seconds on one clock) and z (missing or null without a usable
        dwell).
        """
        lists = [list(events) for events in users["events"]]
        row = np.repeat(np.arange(len(lists)), [len(own) for own in lists])
        each = [event for own in lists for event in own]

        def field(name: str, kind: Any) -> Any:
            return np.array([event.get(name) for event in each], np.float64).astype(kind)  # None is NaN

        flat = FlatEvents(
            row, field("ts_s", np.float64), field("stream_id", np.int64), field("dwell_bin", np.int64),
            field("z", np.float64), np.full(len(row), INPUT),
        )  # fmt: skip
        flat = flat.take(np.flatnonzero(flat.stream < self.fitted.n_streams))
        inputs = jagged(
            flat,
            users=pa.nulls(len(lists), pa.string()),
            n_streams=self.fitted.n_streams,
            gap_s=self.gap_s,
        )
        q = np.round(self.fitted.posterior(inputs), DIGITS)
        sure = (q.max(axis=1) >= self.confidence) & (inputs.events >= self.min_events)
        found = np.where(sure, np.asarray(self.ids)[q.argmax(axis=1)], COLD_SEGMENT)
        return {"user_id": list(users["user_id"]), "segment_id": found.tolist()}
