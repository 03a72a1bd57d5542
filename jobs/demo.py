"""`demo`: a first small world whose heat map is there within a minute, then the full demo world.

Everything below `--out` is made anew only where it is missing; a second demo skips what is unchanged.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from dynamix.config import load_config
from dynamix.features.simulate import simulate
from dynamix.features.tables import Warehouse
from dynamix.jobs.context import Run
from dynamix.jobs.interrupt import plain_interrupts
from dynamix.jobs.report import report
from dynamix.jobs.run import execute, run_all
from dynamix.jobs.session import get_spark
from dynamix.jobs.settings import dump, store_config
from dynamix.jobs.verbs import open_run

if TYPE_CHECKING:
    from dynamix.jobs.cli import Outcome

FIRST_USERS, FIRST_DAYS = 2_000, 28
DAYS, SEED, PRESET = 42, 0, "S0"
BUDGET = 0.005  # relative NE; `power` says what .001 and .0002 would need in this world
DELTA = 0.20  # log-odds per SD, what the budget of .5 % allows at p = 5 % (docs/method.md A.7)
SETTINGS = (f"mask.ne_budget={BUDGET}", f"mask.delta={DELTA}")


def demo(arguments: Namespace, outcome: Outcome) -> None:
    """Run both worlds; the outcome carries the full world's tables, verdicts and model."""
    stream = sys.stderr if arguments.json else sys.stdout
    get_spark()
    plain_interrupts()
    first = _world(arguments.out / "first", users=FIRST_USERS, days=FIRST_DAYS, settings=arguments.settings)
    if not (first.warehouse.root / "masks" / "_delta_log").is_dir():
        world = arguments.out / "first" / "world"
        for verb in ("ingest", "features", "segment", "mask"):
            execute(first, verb, skip=True, source=str(world) if verb == "ingest" else None)
        _show_heat_map(first, world, stream)
    else:
        first.note("first world: already there, skipped")
    full = _world(arguments.out / "full", users=arguments.users, days=DAYS, settings=arguments.settings)
    world = arguments.out / "full" / "world"
    total = run_all(full, events=str(world), truth=world / "truth_impressions")
    outcome.run_id, outcome.run_date = full.run_id, str(full.run_date)
    outcome.metrics, outcome.verdicts = total.metrics, total.verdicts
    outcome.skipped, outcome.warnings = total.skipped, total.warnings
    outcome.facts = dict(total.facts)
    outcome.tables = {name: {"version": version, "rows": -1} for name, version in total.tables.items()}
    print(total.facts.get("heatmap", ""), total.facts.get("text", ""), sep="\n\n", file=stream)


def _world(folder: Path, *, users: int, days: int, settings: list[str]) -> Run:
    world = folder / "world"
    if not (world / "dynamix.yaml").is_file():
        print(f"simulating {users:,} users over {days} days into {world}", file=sys.stderr, flush=True)
        simulate(world, preset=PRESET, users=users, days=days, seed=SEED)
    config = load_config(files=[world / "dynamix.yaml"], settings=[*SETTINGS, *settings])
    run = open_run(Warehouse(folder / "warehouse"), config, str(world), run_date=None)
    (run.folder / "config.yaml").write_text(dump(config), encoding="utf-8")
    store_config(run.warehouse.root, config)
    return run


def _show_heat_map(run: Run, world: Path, stream: TextIO) -> None:
    """The page and the terminal's heat map with the planted kinds beside the verdicts."""
    page = run.warehouse.private / "report.html"
    shown = report(run, out=page, truth=world)
    print(shown.facts.get("heatmap", ""), file=stream)
    print(f"heat map of the first small world: {page}", file=stream, flush=True)
