"""The command line's grammar: one parser, the common options, the verbs and what each says of itself."""

from __future__ import annotations

import argparse
from datetime import date
from pathlib import Path

from dynamix import __version__


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no date; allowed: YYYY-MM-DD") from None


def _common() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    group = common.add_argument_group("common options")
    group.add_argument("--config", type=Path, action="append", default=[], help="YAML file; later ones win")
    group.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one setting; wins over files",
    )
    group.add_argument("--run-date", type=_day, help="the run sees events before this day 00:00 UTC")
    group.add_argument("--json", action="store_true", help="one JSON object on standard output")
    group.add_argument("--quiet", action="store_true", help="no progress lines")
    group.add_argument("--debug", action="store_true", help="show the trace of an error")
    return common


def _warehouse(parser: argparse.ArgumentParser, *, events: bool = False) -> None:
    parser.add_argument(
        "--warehouse",
        required=True,
        help="directory that holds the tables, or catalog.schema of the metastore",
    )
    if events:
        parser.add_argument("--events", required=True, help="path or table of raw events")
        parser.add_argument("--allow-empty", action="store_true", help="an empty source is meant")
        parser.add_argument("--rebuild", action="store_true", help="write over another definition")


def build_parser() -> argparse.ArgumentParser:
    """All verbs with their options; `dynamix VERB --help` explains each."""
    parser = argparse.ArgumentParser(
        prog="dynamix", description="Event features, segments and keep/boost masks for ads rankers."
    )
    parser.add_argument("--version", action="version", version=f"dynamix {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    common = _common()

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        return verbs.add_parser(name, help=text, description=text, parents=[common])

    init = verb("init", "look at your own events and propose a commented dynamix.yaml")
    init.add_argument("--events", type=Path, required=True)

    simulate = verb("simulate", "write a seeded world with planted truth")
    simulate.add_argument("--out", type=Path, required=True)
    simulate.add_argument("--preset", help="default S0")
    simulate.add_argument("--users", type=int, help="default 20000")
    simulate.add_argument("--days", type=int, help="default 42")
    simulate.add_argument("--seed", type=int, help="default 0")
    simulate.add_argument(
        "--continue", dest="further", action="store_true", help="append the next seven days"
    )
    simulate.add_argument(
        "--masks", metavar="W", help="with --continue: the log leaves out what the published mask of W drops"
    )

    importer = verb("import", "turn a public data set's own files into canonical raw events")
    importer.add_argument("dataset", choices=["trivago", "kuairand"])
    importer.add_argument("source", type=Path)
    importer.add_argument("--out", type=Path, required=True)

    _warehouse(verb("ingest", "raw events → events, events_quarantine"), events=True)
    features = verb("features", "events → sessions, surfaces, user statistics, streams")
    _warehouse(features)
    days = "of a range of days that is made anew whatever has changed, YYYY-MM-DD"
    features.add_argument("--from", dest="since", type=_day, metavar="D", help=f"first day {days}")
    features.add_argument("--to", dest="until", type=_day, metavar="D", help="the day after its last one")
    _warehouse(verb("segment", "fit, assign and register user segments"))
    mask = verb("mask", "relevance per segment × stream → keep/boost masks")
    _warehouse(mask)
    mask.add_argument("--given", choices=["baseline", "champion", "none"], help="prediction to start from")
    mask.add_argument("--require-change", action="store_true", help="exit 4 if nothing is dropped")
    train = verb("train", "train the arms, judge them, register the winner")
    _warehouse(train)
    train.add_argument("--truth", type=Path, help="truth_impressions of a simulated world")
    train.add_argument(
        "--register-from",
        metavar="RUN",
        help="register what this run trained when the tracking store failed it",
    )
    train.add_argument(
        "--warm-start", choices=["champion"], help="begin from its weights, not from drawn ones"
    )
    train.add_argument("--require-champion", action="store_true", help="exit 4 if nothing is promoted")
    score = verb("score", "score impressions with the registered ranker")
    _warehouse(score)
    score.add_argument("--model", help="e.g. models:/dynamix-ranker@champion")
    score.add_argument("--impressions", metavar="SRC", help="score the impressions of this path or table")
    of_days = "of a range of days of the events whose impressions are scored, YYYY-MM-DD"
    score.add_argument("--from", dest="since", type=_day, metavar="D", help=f"first day {of_days}")
    score.add_argument("--to", dest="until", type=_day, metavar="D", help="the day after its last one")
    score.add_argument(
        "--yesterday", action="store_true", help="the day before the run date, as daily jobs do"
    )
    bundle = verb(
        "bundle", "the mask of a registered ranker as one JSON, for servers without Spark and torch"
    )
    _warehouse(bundle)
    bundle.add_argument("--model", help="e.g. models:/dynamix-ranker@champion")
    bundle.add_argument("--out", type=Path, metavar="DIR", help="default: W/_dynamix/bundle")
    run = verb("run", "the whole cycle; unchanged steps are skipped")
    _warehouse(run, events=True)
    run.add_argument("--truth", type=Path, help="truth_impressions of a simulated world")
    report = verb("report", "one self-contained HTML page")
    _warehouse(report)
    report.add_argument("--out", type=Path)
    plan = verb("plan", "what a run would do, and why (a dry run)")
    _warehouse(plan)
    plan.add_argument("--events", help="path or table of raw events")
    _warehouse(verb("power", "which cells these data can decide, and how many more days the rest needs"))
    _warehouse(verb("monitor", "drift, calibration, NE, mask age, churn: exit 4 when a refit is due"))
    audit = verb(
        "audit", "balance, leakage, and equality of the tables with plain Python on a sample of users"
    )
    _warehouse(audit)
    audit.add_argument("--users", type=int, default=200, help="users of the sample")
    audit.add_argument("--seed", type=int, default=0, help="another seed draws other users")
    explain = verb(
        "explain", "what a stream is, why a segment keeps or drops it, or one user's way to a score"
    )
    explain.add_argument("stream", nargs="?", metavar="STREAM", help="surface/event_type, or with #kind")
    _warehouse(explain)
    explain.add_argument("--segment", metavar="G", help="id or name: the current mask's verdict there")
    explain.add_argument(
        "--user", metavar="U", help="timeline of kept and removed events, from base rate to score"
    )
    explain.add_argument("--impression", metavar="I", help="with --user: this one, not the newest")
    forget = verb("forget", "erase users from all tables, files and models of a warehouse, old versions too")
    _warehouse(forget)
    forget.add_argument("--users", type=Path, required=True, metavar="FILE", help="one user id a line")
    forget.add_argument("--dry-run", action="store_true", help="say what would be erased, change nothing")
    diff = verb("diff", "what changed between two mask versions")
    diff.add_argument("first", metavar="V1", help="mask version, e.g. m20260216-0123abcd")
    diff.add_argument("second", metavar="V2")
    _warehouse(diff)
    maintain = verb("maintain", "compact the tables, delete files that no pinned version needs")
    _warehouse(maintain)
    maintain.add_argument("--keep-hours", type=int, default=168, help="of removed files, at least")
    rollback = verb("rollback", "the champion's alias back to the version before, or to a stated one")
    rollback.add_argument("model", metavar="MODEL", help="dynamix-ranker")
    _warehouse(rollback)
    rollback.add_argument("--to", metavar="V", help="version number; default: the champion before")
    doctor = verb("doctor", "check the environment and say how to mend it")
    doctor.add_argument("--warehouse", type=Path)
    completion = verb("completion", "a script that completes verbs, options and paths in your shell")
    completion.add_argument(
        "shell", choices=["bash", "zsh", "tcsh"], help='e.g. eval "$(dynamix completion bash)"'
    )
    demo = verb("demo", "a first small world, then the full demo world")
    demo.add_argument("--out", type=Path, default=Path("demo"))
    demo.add_argument(
        "--users",
        type=int,
        default=12_000,
        help="12,000 decide three quarters of the null tokens at .5 %% NE",
    )
    return parser
