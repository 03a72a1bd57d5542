"""Fitted segmenters as jobs hand them on: the form that serves, and the file of a version that prototypes do not tell."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynamix.config import Config
from dynamix.errors import EnvironmentTrouble
from dynamix.features.calendar import Calendar, since_1970
from dynamix.jobs.context import Run
from dynamix.jobs.files import read_object, write_whole
from dynamix.models.event_segmenter import EventSegmenter
from dynamix.models.segmenter import Segmenter, stored_segmenter
from dynamix.segmentation.fitted import FittedSegmenter, MixFitted

PLAIN = "mix"
"""The method whose prototypes and shares in `segment_registry` are all of it."""


def served(
    fitted: FittedSegmenter, ids: Sequence[int], *, config: Config, calendar: Calendar, active_from: float
) -> Segmenter | EventSegmenter:
    """The segmenter with stable ids (K,) and the rule of the config, as requests are placed by."""
    own, since_us = config.segmentation, since_1970(calendar.first)
    if isinstance(fitted, MixFitted):
        return Segmenter(
            tuple(ids), fitted.mixture.log_p, fitted.mixture.log_pi, own.confidence, own.min_events, active_from,
            own.dwell_bins, since_us, () if fitted.name == PLAIN else tuple(int(g) for g in fitted.group),
        )  # fmt: skip
    return EventSegmenter(
        tuple(ids), fitted, own.confidence, own.min_events, active_from, config.session.gap_s, since_us
    )


def write_segmenter(run: Run, version: str, tree: Mapping[str, Any]) -> None:
    """Under `W/_dynamix/segmenters`; the same version has the same content."""
    write_whole(_file(run, version), json.dumps(tree, sort_keys=True))


def read_segmenter(run: Run, version: str) -> Segmenter | EventSegmenter:
    """The segmenter of a version; EnvironmentTrouble (exit 5) where its file is gone or damaged."""
    tree = read_object(_file(run, version))
    if tree is None:
        raise EnvironmentTrouble(
            f"segmenter {version}: {_file(run, version)} is gone or damaged; run `dynamix segment` again, which writes it"
        )
    return stored_segmenter(tree)


def _file(run: Run, version: str) -> Path:
    return run.warehouse.private / "segmenters" / f"{version}.json"
