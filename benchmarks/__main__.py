"""The claims of the README, measured: `python -m benchmarks [worlds] [--presets S0,S8] [--users 20000]`.

`python -m benchmarks summary --folder W` prints what a warehouse shows after a cycle.
`python -m benchmarks kernels [--rounds 9]` times jagged attention against dense and padded attention.
`python -m benchmarks features [--sizes 1000000,5000000,20000000] [--runs 5]` compares engines on both feature tables.
`python -m benchmarks quality [--rounds 5]` counts the Spark jobs of the quality gate beside those of its first form.
`python -m benchmarks gates [--presets S0,null] [--seeds 0,1,2,3,4]` holds the statistics against planted truth, no Spark.
`python -m benchmarks drift [--presets S4,S5,S0] [--seeds 0,1,2,3,4]` watches over a mask in worlds that drift, no Spark.
`python -m benchmarks increment [--days 30,90] [--per-day 100000]` sets one more day beside a build of everything.
`python -m benchmarks soak [--days 30] [--users 300] [--folder F] [--minutes 20]` lives a month day by day, with crashes.
`python -m benchmarks headline [--presets S1] [--users 3000] [--arms all]` trains masks and their rivals at equal tokens.
`python -m benchmarks segmenters [--presets S0,S9,orthogonal] [--seeds 2] [--given]` holds the segmenters' contest.
`python -m benchmarks serving` times one request and a batch of them, by the pyfunc and by the mask bundle's reader.
`python -m benchmarks rankers [--presets S0,S1] [--users 4000] [--seeds 2]` sets the three trunks beside simpler models.
`python -m benchmarks warm [--presets S0] [--users 1500] [--seeds 2]` switches a mask on under a live ranker, seven days.
`python -m benchmarks cost --folder F [--sizes 1000000,5000000,20000000]` prices events and tokens verb by verb.
`python -m benchmarks leaving [--users 12000] [--seeds 0-4]` says how soon users leave segment 0.
`python -m benchmarks attributes --folder W` weighs the rows of the newest mask with and without the attributes it takes.
`python -m benchmarks mrmr` sets one pass of sums beside the package mrmr-selection.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks import (
    attributes,
    cost,
    drift,
    features,
    gates,
    headline,
    increment,
    kernels,
    leaving,
    mrmr,
    quality,
    rankers,
    segmenters,
    serving,
    soak,
    summary,
    warm,
    worlds,
)
from benchmarks.soak_world import Plan

WHAT = (
    "worlds", "summary", "kernels", "features", "gates", "drift", "quality", "increment", "segmenters", "headline",
    "mrmr", "rankers", "serving", "soak", "warm", "cost", "leaving", "attributes",
)  # fmt: skip


def main() -> int:
    """Run the named measurement; results go to standard output, progress to standard error."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "what",
        nargs="?",
        default="worlds",
        choices=WHAT,
    )
    parser.add_argument(
        "--presets",
        help="default: S0,S8 for worlds, S1 for headline, S0,S1 for rankers, S0 for warm, all that have a gate for "
        "gates, drift, S0,S9,orthogonal for segmenters",
    )
    parser.add_argument(
        "--users",
        type=int,
        help="default 20,000; 3,000 for headline, 4,000 for rankers, 300 for soak, 1,500 for warm",
    )
    parser.add_argument(
        "--seeds",
        help="as 0,2-4 for worlds, gates, drift (default 0); how many for segmenters, headline, rankers, warm (2)",
    )
    parser.add_argument("--events", default="50,15,5,1.5", help="mean events a user, for segmenters")
    parser.add_argument("--folder", type=Path, help="where worlds are kept between runs (default: temporary)")
    parser.add_argument(
        "--settings", default=",".join(gates.SETTINGS), help="of the config, for gates, drift, headline"
    )
    parser.add_argument(
        "--rounds", type=int, default=9, help="of each cell of the kernels, and of the quality gate"
    )
    parser.add_argument("--given", action="store_true", help="K as planted, no choice of K, for segmenters")
    parser.add_argument(
        "--days", help="ages of the table, for increment (default 30,90); days, for soak (30)"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=0,
        help="stop a soak after so many, 0 = never; with --folder it can go on",
    )
    parser.add_argument("--per-day", type=int, default=100_000, help="events, for increment")
    parser.add_argument("--late", type=int, default=2, help="days by which all rows are there, for increment")
    parser.add_argument("--sizes", default="1000000,5000000,20000000", help="events, for features, cost")
    parser.add_argument("--workloads", default="uniform,hot", help="for features")
    parser.add_argument(
        "--engines", default=",".join(features.ENGINES), help="for features; the first is compared with all"
    )
    parser.add_argument("--verbs", default=",".join(cost.VERBS), help="for cost")
    parser.add_argument("--runs", type=int, default=5, help="timed rounds, for features")
    parser.add_argument("--memory", default="4g", help="largest heap of each Spark side, for features")
    parser.add_argument("--arms", help="all, or names, for headline, rankers, segmenters")
    parser.add_argument("--lifestream", type=Path, help="a python with pytorch-lifestream, for segmenters")
    parser.add_argument("--share", default="0.5", help="of the tokens that arms keep, or ours, for headline")
    parser.add_argument("--rows", type=int, default=0, help="training rows at most, 0 = all, for headline")
    parser.add_argument("--curve", default="", help="shares of the tokens for four arms, for headline")
    parser.add_argument(
        "--main-seeds", type=int, default=0, help="of all events, one segment and ours, for headline"
    )
    parser.add_argument(
        "--flops",
        action="store_true",
        help="rows/s with the history at 20, 50, 80 %% of the FLOPs, for headline",
    )
    options = parser.parse_args()
    options.users = options.users or {"headline": 3_000, "rankers": 4_000, "soak": 300, "warm": 1_500}.get(
        options.what, 20_000
    )
    if options.what == "kernels":
        kernels.main(options.rounds)
        return 0
    if options.what == "quality":
        quality.main(rows=1_000_000, rounds=options.rounds)
        return 0
    if options.what == "segmenters":
        with tempfile.TemporaryDirectory() as scratch:
            segment(options, options.folder or Path(scratch))
        return 0
    if options.what == "serving":
        serving.main()
        return 0
    if options.what == "mrmr":
        mrmr.main()
        return 0
    if options.what == "increment":
        ages = [int(days) for days in (options.days or "30,90").split(",")]
        with tempfile.TemporaryDirectory() as scratch:
            place = options.folder or Path(scratch)
            increment.main(place, days=ages, per_day=options.per_day, late_days=options.late)
        return 0
    if options.what == "cost":
        with tempfile.TemporaryDirectory() as scratch:
            price(options, options.folder or Path(scratch))
        return 0
    if options.what == "soak":
        days = Plan(days=int(options.days or 30), users=options.users, seed=int(options.seeds or 0))
        with tempfile.TemporaryDirectory() as scratch:
            return soak.main(options.folder or Path(scratch), days, minutes=options.minutes)
    if options.what == "features":
        with tempfile.TemporaryDirectory() as scratch:
            compare_features(options, options.folder or Path(scratch))
        return 0
    if options.what == "headline":
        with tempfile.TemporaryDirectory() as scratch:
            train_headline(options, options.folder or Path(scratch))
        return 0
    if options.what == "rankers":
        presets, arms = (options.presets or "S0,S1").split(","), rankers.chosen(options.arms)
        with tempfile.TemporaryDirectory() as scratch:
            place = options.folder or Path(scratch)
            rankers.main(presets, place, users=options.users, seeds=int(options.seeds or 2), arms=arms)
        return 0
    if options.what == "warm":
        with tempfile.TemporaryDirectory() as scratch:
            place, presets = options.folder or Path(scratch), (options.presets or "S0").split(",")
            warm.main(presets, place, users=options.users, seeds=int(options.seeds or 2))
        return 0
    if options.what in ("summary", "attributes"):
        if options.folder is None:
            parser.error(f"{options.what} needs --folder W, a warehouse that `dynamix run` has written")
        (summary if options.what == "summary" else attributes).main(options.folder)
        return 0
    seeds = numbers(options.seeds or "0")
    if options.what == "leaving":
        leaving.main(users=options.users, seeds=seeds)
        return 0
    if options.what == "gates":
        chosen = options.presets.split(",") if options.presets else list(gates.GATES)
        gates.main(chosen, seeds=seeds, users=options.users, settings=options.settings.split(","))
        return 0
    if options.what == "drift":
        chosen = options.presets.split(",") if options.presets else list(drift.PRESETS)
        drift.main(chosen, seeds=seeds, settings=options.settings.split(","))
        return 0
    presets = (options.presets or "S0,S8").split(",")
    if options.folder is not None:
        worlds.main(presets, options.folder, options.users, seeds)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        worlds.main(presets, Path(folder), options.users, seeds)
    return 0


def numbers(text: str) -> list[int]:
    """`0,3` or `0-4`: the whole numbers that a list of numbers and ranges names."""
    ends = [part.split("-") for part in text.split(",")]
    return [n for end in ends for n in range(int(end[0]), int(end[-1]) + 1)]


def compare_features(options: argparse.Namespace, folder: Path) -> None:
    """`benchmarks features` with the sizes, workloads and engines of the command line."""
    features.main(
        folder,
        sizes=[int(size) for size in options.sizes.split(",")],
        workloads=options.workloads.split(","),
        runs=options.runs,
        engines=options.engines.split(","),
        memory=options.memory,
    )


def price(options: argparse.Namespace, folder: Path) -> None:
    """`benchmarks cost` with the sizes and verbs of the command line, and no settings but the defaults."""
    cost.main(
        folder,
        events=[int(size) for size in options.sizes.split(",")],
        seed=int(options.seeds or 0),
        verbs=options.verbs.split(","),
        settings=[],
    )


def segment(options: argparse.Namespace, folder: Path) -> None:
    """`benchmarks segmenters` with the worlds, levels and methods of the command line."""
    arms = [] if options.arms in (None, "all") else options.arms.split(",")
    chosen = segmenters.Options(
        users=options.users, seeds=int(options.seeds or 2), folder=folder, by_rule=not options.given, arms=arms,
        events=[float(level) for level in options.events.split(",")], lifestream=options.lifestream,
    )  # fmt: skip
    presets = options.presets.split(",") if options.presets else segmenters.PRESETS
    segmenters.main(presets, chosen)


def train_headline(options: argparse.Namespace, folder: Path) -> None:
    """`benchmarks headline` with the arms and shares of the command line."""
    chosen = headline.Options(
        arms=headline.chosen_arms(options.arms), seeds=int(options.seeds or 2), max_rows=options.rows,
        share=None if options.share == "ours" else float(options.share),
        curve=[float(share) for share in options.curve.split(",") if share], main_seeds=options.main_seeds,
        flops=options.flops, settings=options.settings.split(","),
    )  # fmt: skip
    headline.main((options.presets or "S1").split(","), folder, users=options.users, options=chosen)


if __name__ == "__main__":
    raise SystemExit(main())
