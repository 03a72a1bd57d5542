"""`dynamix bundle`: the mask bundle of a registered ranker with its golden vectors and its reader, in one folder."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

from pyspark.sql import functions as F

from dynamix.contracts import MASKS
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.files import write_whole
from dynamix.jobs.score import default_model
from dynamix.models.bundle import Origin, bundle_text, golden_vectors, mask_note, mask_status
from dynamix.models.registry import artefact_folder
from dynamix.models.service import load_preparation

BUNDLE, GOLDEN, READER = "mask-bundle.json", "mask-bundle.golden.json", "mask_reader.py"


def bundle(
    run: Run, *, out: Path | None = None, model: str | None = None, tracking_uri: str = ""
) -> StepResult:
    """Write bundle, golden vectors and reader of `model` (default: champion, else challenger) into `out`.

    `out` defaults to `W/_dynamix/bundle`. A mask that is not published is a warning: the files are written all the
    same. GuardError (exit 4) where no model is registered or the bundle would reach 1 MB; ConfigError for an address
    that does not exist.
    """
    registry = run.registry(tracking_uri)
    folder, version = artefact_folder(registry, model or default_model(registry)[0])
    preparation = load_preparation(folder)
    status = mask_status(preparation, _status(run, preparation.mask_version))
    origin = Origin(
        version.address, status, version.tags.get("config_hash", ""), version.tags.get("run_date", "")
    )
    text = bundle_text(preparation, origin)
    place = out or run.warehouse.private / "bundle"
    place.mkdir(parents=True, exist_ok=True)
    write_whole(place / BUNDLE, text)
    write_whole(place / GOLDEN, json.dumps(golden_vectors(preparation)))
    (place / READER).write_bytes((files("dynamix.models") / READER).read_bytes())
    note = mask_note(preparation, status)
    size = len(text.encode())
    said = f"wrote {place / BUNDLE} ({size:,} bytes): {version.address}, mask {preparation.mask_version} ({status})"
    facts = {
        "model": version.address, "mask_version": preparation.mask_version, "mask_status": status, "path": str(place),
        "sha256": json.loads(text)["sha256"], "text": said,
    }  # fmt: skip
    return StepResult(facts=facts, counters={"bytes": size}, warnings=[note] if note else [])


def _status(run: Run, version: str) -> str | None:
    """Status of a mask version in table `masks`, None where it is not there."""
    if not run.warehouse.exists(run.spark, MASKS.name):
        return None
    found = run.warehouse.read(run.spark, MASKS.name).where(F.col("mask_version") == version)
    row = found.select("status").limit(1).collect()
    return str(row[0]["status"]) if row else None
