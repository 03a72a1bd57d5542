"""One world of the headline benchmark: a cycle up to `mask`, its keep-all rows, and statistics under three segmentations.

What Spark makes is stored beside the world, so that a stopped benchmark goes on without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from benchmarks.headline_arms import Ints
from benchmarks.headline_masks import Decided
from benchmarks.worlds import SETTINGS, cycle_to_masks, for_all_time
from dynamix.config import Config, load_config
from dynamix.contracts import COLD_SEGMENT, PARTS, TRAINING_ROWS
from dynamix.features.conversions import label_impressions
from dynamix.features.gram import GramSums
from dynamix.features.recency import BeyondSums, RecencySums
from dynamix.features.relevance import CellSums
from dynamix.features.simulate import simulate
from dynamix.features.streams import event_columns
from dynamix.features.training import COLLECTED, training_rows
from dynamix.jobs.arm_rows import load_truth
from dynamix.jobs.cell_stats import Measured
from dynamix.jobs.context import Run
from dynamix.jobs.features import cycle_calendar, seen_events
from dynamix.jobs.kinds import kinded_sessions
from dynamix.jobs.mask import measure, newest_segments
from dynamix.models.contest import Contest, Floats, true_p
from dynamix.models.dataset import JaggedRows, load_rows
from dynamix.models.hashing import hash_ids
from dynamix.segmentation.cells import Statistics

VIEWS = ("own", "tier", "shuffled")
"""Segmentations with statistics of their own: the product's, activity tiers, the product's dealt out anew to users."""
KEEP_ALL = "keep-all"


@dataclass(frozen=True)
class HeadlineWorld:
    """Keep-all rows outside the hold-out with everything that arms are made of.

    `n_segments` counts segment 0; `ids` are the streams' ids by name; `shuffled` and `planted` are the users' other
    segments by user hash; `true_p` (R,) and `cells` (truth_cells) are there in simulated worlds only.
    """

    name: str
    folder: Path
    config: Config
    rows: JaggedRows
    n_segments: int
    ids: Mapping[str, int]
    shuffled: Mapping[int, int]
    planted: Mapping[int, int]
    true_p: Floats | None
    cells: pd.DataFrame | None
    collected: JaggedRows | None = None
    """The same rows with all that a boost could reach; None where the world's config asks for no boosts."""

    @property
    def head(self) -> str:
        return main_head(self.config)

    def rows_for(self, *, longer: bool) -> JaggedRows:
        """The rows whose events an arm keeps or not: keep-all's, or with `longer` the collected ones."""
        return self.collected if longer and self.collected is not None else self.rows

    def segment(self, view: str) -> Ints:
        """Segment of every row (R,) in a view: own, tier, shuffled, planted, or `one` for all."""
        if view == "own":
            return self.rows.segment
        if view == "tier":
            return 1 + self.rows.tier
        if view == "one":
            return np.zeros(len(self.rows), np.int64)
        users, code = np.unique(self.rows.user, return_inverse=True)
        found = self.shuffled if view == "shuffled" else self.planted
        return np.array([found.get(int(u), COLD_SEGMENT) for u in users], np.int64)[code]

    def decided(self, view: str) -> Decided:
        """The product's decision on the statistics of a view; `one` pools those of its own segments."""
        if view not in self._decided:
            statistics = load_statistics(self.folder / f"{'own' if view == 'one' else view}.npz")
            if view == "one":
                statistics = statistics.pooled()
            protected = [name for name in self.ids if self.config.declaration(name).protected]
            self._decided[view] = Decided.of(
                statistics, self.config.mask, protected, base=self.config.history.per_stream
            )
        return self._decided[view]

    @cached_property
    def _decided(self) -> dict[str, Decided]:
        return {}


def main_head(config: Config) -> str:
    """The label that NE is reported of, as the product's contest chooses it."""
    heads = config.heads()
    return "conversion" if "conversion" in heads else heads[0]


def prepare(source: str, folder: Path, *, users: int, seed: int, settings: Sequence[str] = SETTINGS) -> Path:
    """Simulate and run the cycle where that has not been done; the folder that `load` reads.

    `source` is a preset, or a folder with events and dynamix.yaml (a real set as `dynamix import` writes it). Worlds
    under other `settings` of histories, labels or boosts belong into another `folder`.
    """
    real = (Path(source) / "dynamix.yaml").is_file()
    name = Path(source).name if real else f"{source}-{users}-{seed}"
    place = folder / f"{name}-headline"
    if (place / "facts.json").is_file():
        return place
    events = Path(source) if real else folder / name
    if not (events / "dynamix.yaml").is_file():
        simulate(events, preset=source, users=users, days=42, seed=seed)
    run = cycle_to_masks(events, folder / f"{name}-warehouse", settings)
    place.mkdir(parents=True, exist_ok=True)
    segments, version, names = newest_segments(run)
    current = segments.where("valid_to IS NULL").select("user_id", "segment_id").orderBy("user_id").toPandas()
    dealt = current.assign(
        segment_id=np.random.default_rng(seed).permutation(current["segment_id"].to_numpy())
    )
    frames = {
        "own": (segments, names),
        "tier": (tiers(segments), {1: "passive", 2: "active"}),
        "shuffled": (for_all_time(run.spark, dealt), names),
    }
    for view, (frame, named) in frames.items():
        run.note(f"headline: statistics of view {view}")
        measured, _ = measure(run, run.config.mask.given, frame, version, named)
        store_statistics(place / f"{view}.npz", measured)
    dealt.to_parquet(place / "shuffled.parquet")
    run.note("headline: keep-all rows")
    files = keep_all_files(run, segments)
    collected = keep_all_files(run, segments, version=COLLECTED) if run.config.mask.boost_to else []
    streams = run.warehouse.read(run.spark, "streams").select("stream", "stream_id").collect()
    facts = {
        "name": source if not real else name, "events": str(events.resolve()), "files": files, "collected": collected,
        "n_segments": 1 + max(names), "ids": {str(r["stream"]): int(r["stream_id"]) for r in streams},
    }  # fmt: skip
    (place / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    return place


def tiers(segments: DataFrame) -> DataFrame:
    """The same stretches of time with the activity tier as the segment: 1 passive, 2 active, none of them cold."""
    return segments.withColumn("segment_id", F.lit(1) + (F.col("tier") == "active").cast("int"))


def keep_all_files(run: Run, segments: DataFrame, *, version: str = KEEP_ALL) -> list[str]:
    """Write the keep-all rows, or those COLLECTED, as `dynamix train` does; the Parquet files of that version."""
    events, warehouse = seen_events(run), run.warehouse
    calendar = cycle_calendar(run, events)
    streams = warehouse.read(run.spark, "streams")
    stats = warehouse.read(run.spark, "user_stats").where(
        F.col("baseline_version") == calendar.baseline_version
    )
    history = event_columns(events, streams, stats, run.config, sessions=kinded_sessions(run)).persist()
    try:
        frame = training_rows(
            history, label_impressions(events, config=run.config), segments, None,
            calendar=calendar, config=run.config, streams=streams, mask_version=version,
        )  # fmt: skip
        where = f"mask_version = '{version}'"
        pinned = warehouse.replace(run.spark, TRAINING_ROWS, frame, where=where, empty=False)
    finally:
        history.unpersist()
    return warehouse.files(run.spark, TRAINING_ROWS.name, version=pinned, where=where)


def store_statistics(path: Path, measured: Measured) -> None:
    """All sums of one view as packed vectors with their keys."""
    statistics = measured.statistics
    np.savez_compressed(
        path,
        keys=json.dumps([list(k) for k in statistics.sums]),
        sums=np.stack([s.pack() for s in statistics.sums.values()]),
        together_keys=json.dumps([list(k) for k in statistics.together]),
        together=np.array([s.pack() for s in statistics.together.values()]),
        place=json.dumps(dict(statistics.place)),
        settings=json.dumps(statistics.settings),
        recency_keys=json.dumps([list(k) for k in statistics.recency]),
        recency=np.stack([s.pack() for s in statistics.recency.values()]),
        beyond_keys=json.dumps([list(k) for k in statistics.beyond]),
        beyond=np.array([s.pack() for s in statistics.beyond.values()]),
        heads=json.dumps(statistics.heads),
    )


def load_statistics(path: Path) -> Statistics:
    """What `store_statistics` has stored."""
    with np.load(path) as found:
        heads = tuple(json.loads(str(found["heads"])))
        sums = {
            tuple(k): CellSums.unpack(v)
            for k, v in zip(json.loads(str(found["keys"])), found["sums"], strict=True)
        }
        keys = json.loads(str(found["recency_keys"]))
        recent = {tuple(k): RecencySums.unpack(v) for k, v in zip(keys, found["recency"], strict=True)}
        keys = json.loads(str(found["together_keys"]))
        together = {tuple(k): GramSums.unpack(v) for k, v in zip(keys, found["together"], strict=True)}
        keys = json.loads(str(found["beyond_keys"]))
        beyond = {tuple(k): BeyondSums.unpack(v) for k, v in zip(keys, found["beyond"], strict=True)}
        place, settings = json.loads(str(found["place"])), tuple(json.loads(str(found["settings"])))
    return Statistics(sums, heads, together, place, settings, recent, beyond)


def load(place: Path, *, max_rows: int, settings: Sequence[str] = SETTINGS) -> HeadlineWorld:
    """The world of a folder that `prepare` has filled, at most about `max_rows` training rows (0 = all).

    `settings` are those of `prepare`; of `train`, and of `mask` but for boosts, nothing stored rests on them.
    """
    facts = json.loads((place / "facts.json").read_text(encoding="utf-8"))
    events = Path(facts["events"])
    config = load_config(files=[events / "dynamix.yaml"], settings=list(settings))

    def loaded(files: list[str]) -> JaggedRows:
        return used_rows(
            load_rows(files, heads=config.heads(), item_buckets=config.train.item_buckets), max_rows=max_rows
        )

    rows = loaded(facts["files"])
    simulated = (events / "truth_cells").exists()
    planted = pd.read_parquet(events / "truth_users") if simulated else None
    return HeadlineWorld(
        name=facts["name"], folder=place, config=config, rows=rows, n_segments=facts["n_segments"], ids=facts["ids"],
        shuffled=by_user(pd.read_parquet(place / "shuffled.parquet"), "segment_id"),
        planted={} if planted is None else by_user(planted, "segment"),
        true_p=true_probabilities(rows, main_head(config), events / "truth_impressions") if simulated else None,
        cells=pd.read_parquet(events / "truth_cells") if simulated else None,
        collected=loaded(facts["collected"]) if facts.get("collected") else None,
    )  # fmt: skip


def used_rows(rows: JaggedRows, *, max_rows: int) -> JaggedRows:
    """Rows outside the hold-out, which no mask touches; training rows capped by whole users."""
    parts = [rows.select(part, holdout=False) for part in PARTS]
    parts[0] = parts[0].cap_users(max_rows)
    chosen = np.concatenate([p.impression_hash for p in parts])
    return rows.take(np.flatnonzero(np.isin(rows.impression_hash, chosen)))


def by_user(table: pd.DataFrame, column: str) -> dict[int, int]:
    """User hash -> number."""
    return dict(
        zip(hash_ids(pa.array(table["user_id"])).tolist(), table[column].astype(int).tolist(), strict=True)
    )


def true_probabilities(rows: JaggedRows, head: str, truth: Path) -> Floats:
    """Planted p of every row (R,). ValueError where a row has none."""
    found = true_p(Contest({}, {}, head, (head,), load_truth(truth)), rows, head)
    if found is None:
        raise ValueError(
            f"{truth} does not hold all impressions of the training rows; simulate the world anew"
        )
    return found
