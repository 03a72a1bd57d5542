"""Sections of the config that change no table: watch, prices, privacy; and what all sections share."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def switch(value: object) -> object:
    """The words `on` and `off`, which YAML reads as true and false; anything else as it is."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def seconds(value: object) -> float:
    """Length of time in seconds: a number is seconds, text is `30m`, `24h`, `7d`, `60s`, `500ms`."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d)\s*", str(value))
    if not match:
        raise ValueError(
            f"length of time {value!r}; allowed: 30m, 24h, 7d, 60s, 500ms or a number of seconds"
        )
    return float(match[1]) * _UNITS[match[2]]


class Section(BaseModel):
    """A frozen part of the config; keys it does not know are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DriftConfig(Section):
    psi: float = Field(0.2, gt=0, description="population stability index of dwell that is a warning (C.6)")
    null_rate: float = Field(0.05, gt=0, le=1, description="change of a column's share of NULLs")
    coverage_ratio: float = Field(
        2.0, gt=1, description="factor by which a share of events or user days changes"
    )
    min_rows: int = Field(500, ge=1, description="fewer rows on either side are not compared")


class MonitorConfig(Section):
    days: int = Field(7, ge=1, description="newest days that are compared: each weekday once")
    score_days: int = Field(1, ge=1, description="newest days of scored impressions with a known label")
    mask_age_days: int = Field(21, ge=1, description="an older mask shares no statistics day with a new one")
    calibration: float = Field(1.2, gt=1, description="factor, either way, by which predictions may be off")
    ne_rise: float = Field(
        0.02, gt=0, description="relative rise of NE over training: 20 times what a mask may spend by default"
    )
    churn: float = Field(
        0.2, gt=0, lt=1, description="share of a segment's users; two assignments at 90 % differ by less"
    )
    min_positives: int = Field(20, ge=2, description="fewer label-1 rows of a segment are not judged")


class PriceConfig(Section):
    currency: str = Field("EUR", description="of the receipt")
    per_training_hour: float = Field(0.0, ge=0, description="0: the receipt names no money")
    per_billion_inferences: float = Field(0.0, ge=0, description="0: the receipt names no money")


class PrivacyConfig(Section):
    opt_out: str = Field(
        "", description="file with one user id a line; `ingest` makes table opt_out equal to it"
    )
    user_ids: Literal["clear", "hmac"] = Field(
        "clear", description="hmac: ids are hashed at ingest with the key in DYNAMIX_USER_KEY"
    )
