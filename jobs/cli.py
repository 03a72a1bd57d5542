"""The `dynamix` command: argv in, an exit code out; errors are one or two lines, never a bare trace."""

from __future__ import annotations

import json
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dynamix.config import Config
from dynamix.errors import ConfigError, DynamixError, GuardError
from dynamix.features.sql_text import is_schema_name
from dynamix.jobs.hidden import hide, hide_all, shown
from dynamix.jobs.options import build_parser


@dataclass
class Outcome:
    """What `--json` prints: fixed keys, see docs/architecture.md."""

    verb: str
    run_id: str = ""
    run_date: str = ""
    status: str = "done"
    exit_code: int = 0
    tables: dict[str, dict[str, int]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    verdicts: dict[str, int] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    message: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Returns the exit code of docs/architecture.md ("Exit codes")."""
    return perform(build_parser().parse_args(argv)).exit_code


def perform(arguments: Namespace) -> Outcome:
    """Run the parsed verb, say what it found or why it failed, and return that; no error of it escapes."""
    outcome = Outcome(verb=arguments.verb)
    try:
        HANDLERS[arguments.verb](arguments, outcome)
    except DynamixError as trouble:
        _fail(outcome, arguments, trouble.exit_code, trouble.message)
    except PermissionError as trouble:
        what = f"no permission for {trouble.filename or 'a file'} ({trouble.strerror})"
        _fail(
            outcome,
            arguments,
            5,
            f"{what}; give this user the right (docs/deploy.md, Rights), or name another folder",
        )
    except KeyboardInterrupt:
        _fail(outcome, arguments, 130, "interrupted; what was written stays, run again to go on from there")
    except Exception as trouble:
        first = (hide(str(trouble)).strip() or type(trouble).__name__).splitlines()[0]
        code = 5 if "No space left" in str(trouble) else 1
        _fail(outcome, arguments, code, f"{type(trouble).__name__}: {first[:400]} (--debug shows the trace)")
    if arguments.json:
        print(json.dumps(hide_all(json.loads(json.dumps(asdict(outcome), default=str)))))
    return outcome


def _fail(outcome: Outcome, arguments: Namespace, code: int, message: str) -> None:
    outcome.status = "interrupted" if code == 130 else "failed"
    outcome.exit_code = code
    outcome.message = hide(message)
    if arguments.debug:
        print(shown(traceback.format_exc()), file=sys.stderr, end="")
    print(shown(f"dynamix {arguments.verb}: {outcome.message}"), file=sys.stderr)


def _say(arguments: Namespace, *lines: str) -> None:
    stream = sys.stderr if arguments.json else sys.stdout
    for line in lines:
        print(shown(line), file=stream, flush=True)


def _simulate(arguments: Namespace, outcome: Outcome) -> None:
    stated = {name: getattr(arguments, name) for name in ("preset", "users", "days", "seed")}
    given = {name: value for name, value in stated.items() if value is not None}
    if arguments.further:
        if given:
            raise ConfigError(
                f"--continue goes on with the world in {arguments.out}; --{min(given)} is for a new one: leave it out"
            )
        outcome.facts = asdict(_continued(arguments.out, arguments.masks))
    elif arguments.masks is not None:
        raise ConfigError("--masks goes with --continue: a new world has no mask yet")
    else:
        from dynamix.features.simulate import simulate

        outcome.facts = asdict(simulate(arguments.out, **given))
    _say(arguments, f"wrote {arguments.out}", *_facts(outcome.facts))


def _continued(out: Path, masks: str | None) -> Any:
    from dynamix.features.sim_continue import continue_world

    if masks is None:
        return continue_world(out)
    from dynamix.jobs.continued import continue_with  # needs Spark

    return continue_with(out, masks)


def _facts(facts: Mapping[str, Any]) -> list[str]:
    """`name: value` lines, whole numbers with commas, a mapping in one line."""

    def said(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{name} {said(one)}" for name, one in value.items())
        if isinstance(value, float):
            return f"{value:.6g}"
        return f"{value:,}" if isinstance(value, int) else str(value)

    return [f"  {name}: {said(value)}" for name, value in facts.items()]


def _import(arguments: Namespace, outcome: Outcome) -> None:
    from dynamix.features.sources.kuairand import import_kuairand
    from dynamix.features.sources.trivago import import_trivago

    importer: Callable[[Path, Path], Any] = {"trivago": import_trivago, "kuairand": import_kuairand}[
        arguments.dataset
    ]
    outcome.facts = asdict(importer(arguments.source, arguments.out))
    _say(arguments, f"wrote {arguments.out}", *_facts(outcome.facts))


def _init(arguments: Namespace, outcome: Outcome) -> None:
    from dynamix.jobs.init import init

    proposal = init(arguments.events)
    outcome.facts = {"path": str(proposal.path), "missing": proposal.missing, "rows_seen": proposal.rows_seen}
    _say(arguments, f"wrote {proposal.path} from {proposal.rows_seen:,} rows:", proposal.text)
    for name in proposal.missing:
        outcome.warnings.append(f"no column looks like {name!r}; map it under columns in {proposal.path}")
    _say(arguments, *outcome.warnings)


def _doctor(arguments: Namespace, outcome: Outcome) -> None:
    from dynamix.jobs.doctor import doctor

    checks = doctor(arguments.warehouse)
    outcome.facts = {"checks": [asdict(check) for check in checks]}
    for check in checks:
        _say(arguments, f"{'ok  ' if check.ok else 'FAIL'} {check.name}: {check.found}")
        if not check.ok:
            _say(arguments, f"     fix: {check.fix}")
    if not all(check.ok for check in checks):
        outcome.status, outcome.exit_code = "failed", 5


def _completion(arguments: Namespace, outcome: Outcome) -> None:
    from dynamix.jobs.completion import script

    text = script(build_parser(), arguments.shell)
    outcome.facts = {"script": text}
    if not arguments.json:
        sys.stdout.write(text)


def _settings(arguments: Namespace) -> Config:
    from dynamix.jobs.settings import refuse_missing_source, resolve_config

    refuse_missing_source(getattr(arguments, "events", None))
    return resolve_config(
        warehouse=_root(arguments.warehouse),
        events=getattr(arguments, "events", None),
        files=arguments.config,
        settings=arguments.settings,
    )


def _root(warehouse: str) -> Path:
    """Folder of the warehouse, or of what lies beside the tables of a schema."""
    if not is_schema_name(warehouse):
        return Path(warehouse)
    from dynamix.jobs.places import place_of  # only the session's metastore knows

    return place_of(warehouse).root


def _on_warehouse(arguments: Namespace, outcome: Outcome) -> None:
    config = _settings(arguments)
    from dynamix.jobs.verbs import run_verb  # Spark, torch and MLflow load only once the options hold

    result, run = run_verb(arguments, config)
    outcome.run_id, outcome.run_date = run.run_id, str(run.run_date)
    outcome.metrics, outcome.verdicts = result.metrics, result.verdicts
    outcome.skipped, outcome.warnings = result.skipped, result.warnings
    outcome.facts = {**result.facts, "counters": result.counters}
    for name, version in result.tables.items():
        rows = run.warehouse.read(run.spark, name).count() if arguments.json else -1
        outcome.tables[name] = {"version": version, "rows": rows}
    for warning in result.warnings:
        print(shown(f"warning: {warning}"), file=sys.stderr)
    _say(arguments, *str(result.facts.get("text", "")).splitlines())
    _refuse_no_change(arguments, result.verdicts, result.facts)
    _ask_for_refit(result.facts)


def _explain(arguments: Namespace, outcome: Outcome) -> None:
    if (arguments.stream is None) == (arguments.user is None):
        raise ConfigError(
            "explain needs STREAM or --user, one of them, e.g. `dynamix explain shop/view --warehouse W` or `dynamix "
            "explain --user U --warehouse W`"
        )
    if (arguments.segment and arguments.user) or (arguments.impression and arguments.stream):
        raise ConfigError("--segment goes with STREAM, --impression with --user")
    _on_warehouse(arguments, outcome)


def _rollback(arguments: Namespace, outcome: Outcome) -> None:
    from dynamix.jobs.context import registry_of
    from dynamix.jobs.rollback import rollback

    private = _root(arguments.warehouse) / "_dynamix"
    if not private.is_dir():
        raise ConfigError(f"--warehouse {arguments.warehouse} is no warehouse of DynamiX; check the path")
    outcome.facts = rollback(registry_of(private), arguments.model, to=arguments.to).facts
    _say(arguments, outcome.facts["text"])


def _refuse_no_change(arguments: Namespace, verdicts: dict[str, int], facts: dict[str, str]) -> None:
    if getattr(arguments, "require_change", False) and not verdicts.get("drop"):
        raise GuardError("the mask drops nothing and --require-change was given; see `dynamix power`")
    if getattr(arguments, "require_champion", False) and facts.get("alias") != "champion":
        raise GuardError("no model was promoted and --require-champion was given; see evidence.json")


def _ask_for_refit(facts: Mapping[str, Any]) -> None:
    if facts.get("refit_due"):
        raise GuardError(
            f"{facts['answer']} Run `dynamix run` on the newest events (docs/monitor.md says more)"
        )


def _demo(arguments: Namespace, outcome: Outcome) -> None:
    from dynamix.jobs.demo import demo

    demo(arguments, outcome)


HANDLERS: dict[str, Callable[[Namespace, Outcome], None]] = {
    "init": _init,
    "simulate": _simulate,
    "import": _import,
    "doctor": _doctor,
    "demo": _demo,
    "completion": _completion,
    "explain": _explain,
    "rollback": _rollback,
    **dict.fromkeys(
        (
            "ingest",
            "features",
            "segment",
            "mask",
            "train",
            "score",
            "bundle",
            "run",
            "report",
            "plan",
            "power",
            "monitor",
            "audit",
            "diff",
            "maintain",
            "forget",
        ),
        _on_warehouse,
    ),
}


if __name__ == "__main__":
    raise SystemExit(main())
