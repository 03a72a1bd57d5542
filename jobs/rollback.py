"""`dynamix rollback`: the alias `champion` goes back to a version that had it, or to a stated one. Needs no Spark."""

from __future__ import annotations

from dynamix.errors import ConfigError, GuardError
from dynamix.jobs.context import StepResult
from dynamix.jobs.forget import TRAINED
from dynamix.jobs.registration import PREDECESSOR
from dynamix.models.registered import versions
from dynamix.models.registry import CHAMPION, RANKER, Registry, Version, find, move_alias


def rollback(registry: Registry, name: str = RANKER, *, to: str | None = None) -> StepResult:
    """Move `champion` to version `to`, by default to the champion that the present one took over from.

    Masks and scores are not touched: the model brings its own mask, and `dynamix score` takes the champion of then.
    ConfigError (exit 2) for a model or version that does not exist; GuardError (exit 4) where there is no champion or
    predecessor, where the version was trained on users who were forgotten since, or where another process moved the
    alias meanwhile.
    """
    known = {version.version: version for version in versions(registry, name)}
    if not known:
        raise ConfigError(
            f"model {name!r} has no version here; roll back {RANKER} of a warehouse that was trained"
        )
    current = find(registry, name, CHAMPION)
    if current is None:
        raise GuardError(
            f"no version of {name} is champion, so there is nothing to roll back; known: {', '.join(known)}"
        )
    target = _target(known, known[current.version], to)
    if TRAINED in target.tags:
        raise GuardError(
            f"{target.address} was trained on users who were forgotten since; choose another version with --to, or train"
        )
    facts = {"model": target.address, "from": current.version, "to": target.version}
    if target.version == current.version:
        return StepResult(facts=facts | {"text": f"{target.address} is champion already; nothing changed"})
    move_alias(registry, name, CHAMPION, target.version, expected=current.version)
    mask = target.tags.get("mask_version", "unknown")
    said = f"champion of {name}: version {current.version} -> {target.version} (mask {mask}, run {_of(target, 'run_id')})"
    again = f"the way forward again: dynamix rollback {name} --to {current.version}"
    return StepResult(facts=facts | {"mask_version": mask, "text": f"{said}\n{again}"})


def _target(known: dict[str, Version], current: Version, to: str | None) -> Version:
    asked = to or current.tags.get(PREDECESSOR, "none")
    if asked in known:
        return known[asked]
    if to is not None:
        raise ConfigError.unknown_version("version", to, list(known))
    raise GuardError(
        f"{current.address} took over from no other champion; name a version with --to, known: {', '.join(known)}"
    )


def _of(version: Version, tag: str) -> str:
    return version.tags.get(tag, "unknown")
