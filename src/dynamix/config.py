"""The one typed config tree: a unit and a reason per field; YAML files and `--set` only override it.

Precedence: `--set` > `--config` > `dynamix.yaml` beside the events > defaults. Unknown keys are refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from dynamix.conditions import condition_trouble
from dynamix.config_errors import troubles
from dynamix.config_files import assignment, merged, read_yaml
from dynamix.config_parts import (
    DriftConfig,
    MonitorConfig,
    PriceConfig,
    PrivacyConfig,
    Section,
    seconds,
    switch,
)
from dynamix.declarations import Declaration, StreamOptions, declare, violations
from dynamix.errors import ConfigError


class SessionConfig(Section):
    rule: Literal["gap", "given"] = Field(
        "gap", description="gap: cut by silence; given: the source's own session id"
    )
    gap_s: float = Field(1800.0, gt=0, description="s; a new session iff the silence is strictly longer")
    max_length_s: float = Field(86400.0, gt=0, description="s; longer sessions are split and flagged")

    kinds: Literal["off", "on"] = Field(
        "off", description="on: streams of histories carry the kind of the closed session, `#open` before"
    )

    _lengths = field_validator("gap_s", "max_length_s", mode="before")(seconds)

    _words = field_validator("kinds", mode="before")(switch)


class DwellConfig(Section):
    derive: bool = Field(True, description="false where gaps between rows mean nothing")
    cap_quantile: float = Field(0.995, gt=0, le=1, description="per stream; above it a dwell is `capped`")
    imputed_share: float = Field(
        0.05,
        gt=0,
        le=1,
        description="of a stream's last events; a logged value above it may be a filled-in constant",
    )
    censor_last: bool = Field(True, description="false is the planted bug E1: last event gets dwell 0")


class AttributionConfig(Section):
    click_window_s: float = Field(604800.0, ge=0, alias="click_window", description="s")
    view_window_s: float = Field(86400.0, ge=0, alias="view_window", description="s")
    model: Literal["last_touch"] = Field("last_touch", description="the latest impression of those in reach")
    join_on: tuple[tuple[str, ...], ...] = Field(
        (("request_id", "item_id"), ("ad_id",), ("item_id",)),
        description="columns; the first tuple that both rows have whole decides",
    )
    count: Literal["one"] = Field("one", description="impressions that an event may be given to")

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
    _lengths = field_validator("click_window_s", "view_window_s", mode="before")(seconds)


class HistoryConfig(Section):
    per_stream: int = Field(50, ge=1, description="newest events kept per stream")
    total: int = Field(200, ge=1, description="newest events kept over all streams")
    embargo_s: float = Field(
        60.0, ge=0, alias="embargo", description="s; history ends strictly before t - embargo"
    )
    as_known_at: Literal["impression", "run_date"] = Field(
        "impression", description="instant by which an event of the history must be known"
    )

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
    _lengths = field_validator("embargo_s", mode="before")(seconds)


class SegmentationConfig(Section):
    method: Literal["mix", "mix-merge", "neural", "paper2"] = Field(
        "mix", description="mix is fitted on Spark, the others in memory on the driver (A.4)"
    )
    control: Literal["none", "one", "shuffled", "tier"] = Field(
        "none", description="a segmentation that is none, to compare with"
    )
    k_max: int = Field(8, ge=1, le=32, description="largest number of segments tried")
    confidence: float = Field(0.9, gt=0, lt=1, description="posterior needed to leave segment 0")
    min_events: int = Field(15, ge=1, description="usable events needed to leave segment 0")
    min_share: float = Field(0.01, ge=0, lt=1, description="of users; a smaller segment refuses that K")
    stability: float = Field(0.6, ge=0, le=1, description="split-half ARI below it refuses that K")
    max_length_eta2: float = Field(
        0.1, ge=0, le=1, description="share of log length explained by the segment"
    )
    restarts: int = Field(3, ge=1, description="drawn starts of EM, of which the likeliest is kept")
    max_iter: int = Field(60, ge=1, description="steps of EM at most")
    emission_prior: float = Field(0.5, gt=0, description="Dirichlet a of the M step (A.4.3)")
    dwell_bins: bool = Field(True, description="emissions over streams x dwell bins; false: streams only")
    fit_users: int = Field(
        50_000,
        ge=1,
        description="users, by hash, that a method other than mix is fitted on; all are assigned",
    )
    device: Literal["cpu", "cuda"] = Field(
        "cpu", description="where `neural` is trained; it is applied on the CPUs of the executors"
    )
    seed: int = Field(0, description="of the starts, and of the controls")

    @model_validator(mode="after")
    def _controls_are_of_the_mixture(self) -> SegmentationConfig:
        if self.control != "none" and self.method != "mix":
            raise ValueError(
                f"control {self.control} is a control of the method mix, not of {self.method}; "
                "allowed: control none, or method mix"
            )
        return self


class MaskConfig(Section):
    delta: float = Field(0.10, gt=0, description="log-odds per SD that a drop must exclude")
    ne_budget: float = Field(0.001, gt=0, lt=0.5, description="relative NE that all drops together may cost")
    rule: Literal["bound", "none", "random", "global"] = Field(
        "bound", description="none keeps all, random drops as many tokens by hash, global is one mask for all"
    )
    length: Literal["bound", "full"] = Field(
        "bound", description="of kept streams: newest events that the budget asks for, or the whole history"
    )
    boost_to: int = Field(0, ge=0, description="newest events of a stream in a boosted cell; 0: no boosts")
    token_budget: float = Field(
        0.98, gt=0, le=1, description="of the tokens without a mask; boosts fill a mask up to it"
    )
    attributes: Literal["off", "bound"] = Field(
        "off",
        description="of kept streams: what their events can do without goes within the budget, or all stay",
    )
    given: Literal["baseline", "champion", "none"] = Field(
        "baseline",
        description="prediction that relevance starts from: without history, the champion's, the base rate",
    )
    min_token_share: float = Field(
        0.002, ge=0, lt=1, description="of the segment's tokens; smaller cells stay"
    )
    support: float = Field(2.93, gt=0, description="positives needed = (support/delta)^2 * deff")
    max_censored_share: float = Field(
        0.5, ge=0, le=1, description="of a stream's events; above it the stream is not dropped"
    )
    ttl_days: int = Field(28, ge=1, description="age at which a published mask is retired")
    window_days: int = Field(
        7, ge=1, description="a window of the watch over a published mask; two are read at a time"
    )
    seed: int = Field(0, description="of the rule `random`")

    _words = field_validator("attributes", mode="before")(switch)


class TrainConfig(Section):
    device: Literal["auto", "cuda", "cpu"] = Field(
        "auto", description="auto says what it took; cuda without a GPU is exit 5"
    )
    amp: Literal["auto", "on", "off"] = Field(
        "auto",
        description="products in bfloat16 while training; auto: on a GPU. Predictions are always float32",
    )
    batch_size: int = Field(1024, ge=2, description="impressions of an optimiser step")
    epochs: int = Field(
        3, ge=1, description="passes over the training rows; the one with the least validation loss is kept"
    )
    min_steps: int = Field(
        450, ge=1, description="optimiser steps at least: few rows get more passes than `epochs`"
    )
    learning_rate: float = Field(2e-3, gt=0, description="of AdamW")
    weight_decay: float = Field(1e-5, ge=0, description="of AdamW")
    trunk: Literal["din", "dlrm", "hstu"] = Field(
        "din", description="what reads the history: one attention, sums by stream, a transformer"
    )
    layers: int = Field(2, ge=1, description="of the transformer (hstu)")
    attention_heads: int = Field(2, ge=1, description="of the transformer (hstu)")
    embedding_dim: int = Field(16, ge=2, description="width of every embedding")
    hidden: tuple[int, ...] = Field(
        (64, 32), min_length=1, description="widths of the layers above the trunk"
    )
    item_buckets: int = Field(20_000, ge=2, description="hash buckets of item ids")
    stream_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="chance that a step leaves a cell out, in one more ranker that prices cells for the gate",
    )
    seeds: tuple[int, ...] = Field((0,), description="one training of every arm each")
    threads: int = Field(2, ge=1, description="of torch, in each process; equal numbers give equal weights")
    launcher: Literal["inline", "torchrun", "spark"] = Field(
        "inline",
        description="what starts the processes of a training: none, torchrun, Spark's TorchDistributor on the driver",
    )
    processes: int = Field(
        1, ge=1, description="that share every batch of a training; with CUDA each has a GPU of its own"
    )
    timeout_s: float = Field(
        600.0, gt=0, description="s; a process that waits longer for the others ends the training (exit 5)"
    )
    checkpoint_s: float = Field(
        60.0,
        ge=0,
        description="s between checkpoints, written after a pass; a killed training goes on from one",
    )
    bootstrap: int = Field(500, ge=50, description="Poisson bootstrap replicates, clustered by user")
    max_rows: int = Field(
        0, ge=0, description="cap on training rows, 0 = all; the newest users' hash is taken"
    )

    _words = field_validator("amp", mode="before")(switch)

    @model_validator(mode="after")
    def _processes_fit(self) -> TrainConfig:
        if self.processes > 1 and self.launcher == "inline":
            raise ValueError(
                f"train.processes is {self.processes}, and train.launcher inline is one process; allowed: 1, or the "
                "launchers torchrun and spark"
            )
        if self.batch_size < self.processes:
            raise ValueError(f"train.batch_size is {self.batch_size}; allowed: train.processes or more")
        return self


class CalendarConfig(Section):
    days: int = Field(42, ge=1, description="days before the run date that the cycle looks at")
    refit_days: int = Field(
        7,
        ge=1,
        description="days that mu, sigma, caps and habit windows stay frozen before a run fits them anew",
    )


class Config(Section):
    """Everything a run depends on besides its tables."""

    columns: dict[str, str] = Field(default_factory=dict, description="canonical name -> the user's own name")
    time_unit: Literal["s", "ms", "us"] | None = Field(
        None, description="unit of numeric times; undeclared is an error"
    )
    format: Literal["parquet", "delta", "csv", "json"] | None = Field(
        None, description="of the source; none: by its file names"
    )
    attributes: tuple[str, ...] = Field((), description="further columns of the source that events carry")
    contract: Literal["open", "closed_unknown", "closed_fail"] = Field(
        "open", description="an unseen surface/event_type: a new stream, stream `unknown`, or exit 3"
    )
    known_streams: tuple[str, ...] = Field((), description="streams of a closed contract")
    impression_types: tuple[str, ...] = Field(("impression",), description="event types that are ads shown")
    click_types: tuple[str, ...] = Field(
        ("click",), description="event types that are clicks; none: no such head"
    )
    conversion_types: tuple[str, ...] = Field(("conversion",), description="event types that are conversions")
    organic_impressions: bool = Field(
        False, description="true: impressions are also streams, and part of sessions and dwell"
    )
    prediction_rows: str = Field("", description="SQL condition on impressions (conditions.py); empty = all")
    labels: tuple[Literal["click", "conversion"], ...] = Field(
        ("click", "conversion"), description="served heads"
    )
    label_meaning: str | dict[str, str] = Field("ad conversion", description="shown wherever a number stands")
    max_quarantined: float = Field(
        0.05, ge=0, le=1, description="share of unusable rows above which nothing is written"
    )
    future_tolerance_s: float = Field(
        900.0, ge=0, description="s after ingest before an event counts as future"
    )
    streams: dict[str, StreamOptions] = Field(
        default_factory=dict, description="surface/event_type[#kind] -> its declaration (declarations.py)"
    )
    session: SessionConfig = SessionConfig()
    dwell: DwellConfig = DwellConfig()
    attribution: AttributionConfig = AttributionConfig()
    history: HistoryConfig = HistoryConfig()
    calendar: CalendarConfig = CalendarConfig()
    segmentation: SegmentationConfig = SegmentationConfig()
    mask: MaskConfig = MaskConfig()
    train: TrainConfig = TrainConfig()
    drift: DriftConfig = DriftConfig()
    monitor: MonitorConfig = MonitorConfig()
    prices: PriceConfig = PriceConfig()
    privacy: PrivacyConfig = PrivacyConfig()

    @field_validator("prediction_rows")
    @classmethod
    def _only_a_condition(cls, value: str) -> str:
        trouble = condition_trouble(value)
        if trouble:
            raise ValueError(f"{trouble}; allowed: a condition on columns of events, e.g. surface = 'search'")
        return value

    @model_validator(mode="after")
    def _streams_agree(self) -> Config:
        found = violations(
            self.streams,
            conversion_types=self.conversion_types,
            attributes=self.attributes,
            kinds=self.with_kinds,
        )
        if found:
            raise ValueError("; ".join(found))
        return self

    @model_validator(mode="after")
    def _boosts_lengthen(self) -> Config:
        if 0 < self.mask.boost_to <= self.history.per_stream:
            raise ValueError(
                f"mask.boost_to is {self.mask.boost_to}; allowed: 0 (no boosts), or more than history.per_stream, "
                f"{self.history.per_stream}"
            )
        return self

    @property
    def with_kinds(self) -> bool:
        """True where streams of histories carry a session kind."""
        return self.session.kinds == "on"

    def declaration(self, stream: str) -> Declaration:
        """The complete declaration of a stream, declared or inferred."""
        return declare(stream, self.streams, per_stream=self.history.per_stream, attributes=self.attributes)

    def heads(self) -> tuple[str, ...]:
        """Served labels, without a click head where no click type is declared."""
        return tuple(h for h in self.labels if h != "click" or self.click_types)

    def digest(self, *sections: str) -> str:
        """First 16 hex digits of SHA-256 over the named sections (all when none are named).

        Without boosts the options of boosts do not count, nor `mask.attributes` where it takes nothing: nothing is named
        anew where neither is asked for.
        `session.kinds` is a section of its own: it changes no stored event. Of `privacy` only hashed user ids count, with
        `columns`; who opted out is the content of a table.
        """
        tree = self.model_dump(mode="json", by_alias=True)
        tree["session.kinds"] = tree["session"].pop("kinds")
        if self.privacy.user_ids != "clear":
            tree["columns"] = {**tree["columns"], "user_id hashed": self.privacy.user_ids}
        tree.pop("privacy")
        if not self.mask.boost_to:
            tree["mask"] = {k: v for k, v in tree["mask"].items() if k not in ("boost_to", "token_budget")}
        if self.mask.attributes == "off":
            tree["mask"].pop("attributes")
        part = {name: tree[name] for name in sections} if sections else tree
        return hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()[:16]

    def meaning(self, label: str) -> str:
        """What a 1 of this label means, in the words of the config."""
        if isinstance(self.label_meaning, dict):
            return self.label_meaning.get(label, label)
        return self.label_meaning if label == "conversion" else label


DEFINITION_SECTIONS = (
    "columns", "time_unit", "attributes", "impression_types", "click_types", "conversion_types",
    "organic_impressions", "session", "dwell",
)  # fmt: skip
"""Sections that define what a stored event row means; a warehouse keeps to one of them (fault 30)."""
RAW_SECTIONS = (
    *DEFINITION_SECTIONS, "format", "contract", "known_streams", "max_quarantined", "future_tolerance_s"
)  # fmt: skip
"""Sections that the events table depends on."""
FEATURE_SECTIONS = (*RAW_SECTIONS, "calendar", "streams", "session.kinds")
"""Sections that the feature tables depend on."""


def load_config(
    *, files: Iterable[Path] = (), settings: Iterable[str] = (), base: Mapping[str, Any] | None = None
) -> Config:
    """Config from files (later ones win), then `key=value` settings. Raises ConfigError, naming each key."""
    tree: dict[str, Any] = dict(base or {})
    for path in files:
        tree = merged(tree, read_yaml(path))
    for setting in settings:
        tree = merged(tree, assignment(setting))
    try:
        return Config.model_validate(tree)
    except ValidationError:
        raise ConfigError("; ".join(troubles(Config, tree))) from None
