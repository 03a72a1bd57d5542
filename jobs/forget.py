"""`dynamix forget`: erase users from every table, file and registered model of a warehouse, older versions included.

What is left to do is read off the files each time, so a run that was killed goes on where it stopped and a second
run finds nothing. Order: hashes for ingest, marks on models, plain files, rows, refusal of old versions, old files.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dynamix.contracts import EVENTS, EVENTS_QUARANTINE, TRAINING_ROWS
from dynamix.errors import EnvironmentTrouble, GuardError, InputError
from dynamix.features.erasure import ROW_HASH, USER, Held, Users, held_in, without_users
from dynamix.features.table_files import LOG, data_files, logged_files
from dynamix.features.tables import Warehouse
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.files import write_whole
from dynamix.jobs.forgotten import load_forgotten, store_forgotten
from dynamix.jobs.recount import recounted_mark
from dynamix.jobs.settings import refuse_no_table
from dynamix.jobs.user_lists import read_users, stored_names
from dynamix.models.registered import tag, versions
from dynamix.models.registry import RANKER, SEGMENTER, Registry, Version

TRAINED = "dynamix.trained_on_forgotten"
"""Tag of a registered version whose training saw users who were forgotten since."""
ORPHAN_HOURS = 24
"""A data file that no commit names may be of a job at work; from this age on it is taken for a dead one's."""
_INVENTORY = "path string, length bigint, isDir boolean, modificationTime bigint"
_STORY = re.compile(r"<!-- story -->.*?<!-- end of story -->", re.DOTALL)
_STORY_GONE = (
    "<h2>One user's story</h2><p>Taken out when users were forgotten: run <code>dynamix report</code>.</p>"
)
_LAST = (EVENTS_QUARANTINE.name, EVENTS.name)


@dataclass(frozen=True)
class TableFound:
    """Where the users are in one table: newest rows, files of older versions, files that no commit names yet."""

    live: Held
    live_files: frozenset[Path]
    old_files: frozenset[Path]
    young_files: frozenset[Path]
    everything: Held


@dataclass(frozen=True)
class Found:
    """Where the users are in a warehouse; `stuck` are files that name them and cannot be written anew."""

    tables: Mapping[str, TableFound]
    plain: tuple[Path, ...]
    stuck: tuple[Path, ...]
    held: Held = field(default_factory=Held)

    def __bool__(self) -> bool:
        return bool(self.plain or self.stuck or self.held)

    def lines(self, root: Path) -> list[str]:
        """One line a place."""
        said = [
            f"  {name}: {one.live.rows} rows, {len(one.old_files)} files of older versions"
            for name, one in self.tables.items()
            if one.everything
        ]
        return said + [f"  file {path.relative_to(root)}" for path in (*self.plain, *self.stuck)]


def forget(run: Run, *, users: Path, dry_run: bool = False, tracking_uri: str = "") -> StepResult:
    """Erase the users of a file, one id a line, everywhere in the warehouse; say which models were trained on them.

    Tables lose the rows, then the data files of older versions that hold them; versions before are refused as
    pins (exit 5). Ingest leaves the users out from now on. With `dry_run` only what would be done is said.
    InputError (exit 3) for an empty file or one without any user known here, GuardError (exit 4) where something
    that names them is left.
    """
    names = stored_names(run.config, read_users(users))
    place, registry = run.warehouse, run.registry(tracking_uri)
    found = survey(run, names)
    stored = load_forgotten(place.private)
    known = found.held.users | {name for name in names if stored.knows(name)}
    if not (known or found.plain or found.stuck):
        raise InputError(
            f"--users {users}: none of its {len(names)} users is known in {place}; ids are written as in "
            f"{EVENTS.name}.user_id, one a line"
        )
    result = StepResult(counters={"users": len(names), "users_known": len(known)})
    if len(known) < len(names):
        result.warnings.append(f"{len(names) - len(known)} of {len(names)} users are not known here")
    models, untold = trained_on(run, registry, found)
    result.facts |= {
        "models": [one.address for one in models],
        "models_untold": [one.address for one in untold],
    }
    if not found:
        if not dry_run:
            _settle_counts(run)
        result.facts["text"] = f"nothing is left of the {len(known)} users"
        return result
    lines = found.lines(place.root)
    if dry_run:
        lines = ["would be erased (--dry-run: nothing was changed):", *lines]
    else:
        store_forgotten(place.private, stored.add(known))
        for model in models:
            tag(registry, model, TRAINED, run.run_id)
        _erase(run, names, found, result)
        _refuse_rest(survey(run, names), place.root)
        lines = ["erased:", *lines]
    result.facts["text"] = "\n".join([*lines, *_said_of(models, untold)])
    return result


def refuse_wrong_call(users: Path, place: Warehouse) -> None:
    """Before anything is looked at: ConfigError (exit 2) where no table is, InputError (exit 3) where no user is."""
    refuse_no_table(place)
    read_users(users)


# ---------------------------------------------------------------- where they are


def survey(run: Run, names: Iterable[str]) -> Found:
    """Every place of the warehouse that holds one of the users; reads one or a few columns of every data file."""
    root, users = run.warehouse.root, Users(frozenset(names))
    folders = run.warehouse.folders()
    tables = {folder.name: _survey_table(run, folder, users) for folder in folders}
    held = sum((one.everything for one in tables.values()), Held())
    users = Users(users.names, held.events)
    plain, stuck = [], [log for folder in folders for log in _logs_that_name(folder, users)]
    for path in sorted(root.rglob("*")):
        if not path.is_file() or any(folder in path.parents for folder in folders):
            continue
        if without_users(path, users, write=False):
            plain.append(path)
        elif path.suffix != ".parquet" and users.named_in(path.read_bytes()):
            stuck.append(path)
    return Found(tables, tuple(plain), tuple(stuck), held)


def _survey_table(run: Run, folder: Path, users: Users) -> TableFound:
    live = {Path(path) for path in run.warehouse.files(run.spark, folder.name, version=None, where="true")}
    logged, now = logged_files(folder), time.time()
    held: dict[Path, Held] = {}
    old: set[Path] = set()
    young: set[Path] = set()
    for path in sorted(live | data_files(folder)):
        due = path in logged or now - path.stat().st_mtime > ORPHAN_HOURS * 3600
        try:
            held[path] = held_in(path, users)
        except ValueError:
            if path in live:
                raise EnvironmentTrouble(
                    f"table {folder.name!r}: file {path.name} cannot be read, so nobody can say whom it holds; RESTORE "
                    "the table to an older version or remove it, and run again"
                ) from None
            held[path] = Held(rows=1)  # torn by a killed writer: it may hold anything
        if held[path] and path not in live:
            (old if due else young).add(path)
    return TableFound(
        sum((held[path] for path in live), Held()),
        frozenset(path for path in live if held[path]),
        frozenset(old),
        frozenset(young),
        sum(held.values(), Held()),
    )


def _logs_that_name(folder: Path, users: Users) -> list[Path]:
    """Log files with a user in them: another writer's statistics or predicates; they go when the log is cleaned."""
    logs = (path for path in (folder / LOG).rglob("*") if path.is_file())
    return sorted(path for path in logs if users.named_in(path.read_bytes()))


def trained_on(run: Run, registry: Registry, found: Found) -> tuple[list[Version], list[Version]]:
    """Registered versions that were trained on the users or on those of an earlier request; and those nobody can tell of.

    A ranker by the files of its pinned `training_rows`, which may be gone or redacted; a segmenter by the segment
    versions that hold the users.
    """
    if not registry.uri and not (registry.private / "mlflow.db").is_file():
        return [], []
    rows = found.tables.get(TRAINING_ROWS.name)
    holding = rows.live_files | rows.old_files if rows else frozenset()
    listed, untold = [], []
    for version in (*versions(registry, SEGMENTER), *versions(registry, RANKER)):
        seen: bool | None = version.tags.get("segment_version") in found.held.segment_versions
        if version.name == RANKER:
            pinned = _pinned_files(run, version)
            seen = None if pinned is None else bool(pinned & holding)
        if seen or TRAINED in version.tags:
            listed.append(version)
        elif seen is None:
            untold.append(version)
    return listed, untold


def _pinned_files(run: Run, version: Version) -> set[Path] | None:
    """Files of the training rows of a ranker; None where that version of the table is gone or redacted."""
    pin = version.tags.get("training_rows_version")
    if pin is None or not run.warehouse.exists(run.spark, TRAINING_ROWS.name):
        return None
    try:
        files = run.warehouse.files(run.spark, TRAINING_ROWS.name, version=int(pin), where="true")
    except EnvironmentTrouble:
        return None
    return {Path(path) for path in files}


def _said_of(models: list[Version], untold: list[Version]) -> list[str]:
    said = []
    if models:
        listed = ", ".join(model.address for model in models)
        said.append(f"trained on forgotten users: {listed}; `dynamix run` trains new ones without them")
    if untold:
        listed = ", ".join(model.address for model in untold)
        said.append(f"nobody can tell of {listed}: the rows they were trained on are gone or redacted")
    return said


# ---------------------------------------------------------------- erasing them


def cut_stories(private: Path) -> list[Path]:
    """Take the user's story out of every report's page below the folder; the pages that had one.

    A page holds no id, so nobody can tell whose story it is: all of them go.
    """
    cut = []
    for page in sorted(private.rglob("*.html")):
        text = page.read_text(encoding="utf-8")
        fresh = _STORY.sub(_STORY_GONE, text)
        if fresh != text:
            write_whole(page, fresh)
            cut.append(page)
    return cut


def _erase(run: Run, names: frozenset[str], found: Found, result: StepResult) -> None:
    place, spark = run.warehouse, run.spark
    if pages := cut_stories(place.private):
        run.note(f"forget: the user's story taken out of {len(pages)} pages")
    for path in found.plain:
        without_users(path, Users(names, found.held.events))
    ordered = sorted(found.tables, key=lambda name: (_LAST.index(name) if name in _LAST else -1, name))
    for name in ordered:
        if found.tables[name].live:
            run.note(f"forget: rows of {name}")
            _erase_rows(run, name, names, found.tables[name].live)
    for name in (name for name in ordered if found.tables[name].everything):
        old = _survey_table(run, place.folder(name), Users(names)).old_files
        if old:
            run.note(f"forget: {len(old)} files of older versions of {name}")
            if old & logged_files(
                place.folder(name)
            ):  # else only a dead writer left them, and no version has them
                place.redact(spark, name, before=place.version(spark, name) or 0)
            _purge(run, name, old)
            result.counters["files_purged"] = result.counters.get("files_purged", 0) + len(old)
        result.tables[name] = place.version(spark, name) or 0
    _settle_counts(run)


def _erase_rows(run: Run, name: str, names: frozenset[str], live: Held) -> None:
    quarantine = name == EVENTS_QUARANTINE.name
    column, values = (ROW_HASH, live.hashes) if quarantine else (USER, names)
    keys = run.spark.createDataFrame([(value,) for value in sorted(values)], f"{column} string")
    run.warehouse.erase(run.spark, name, keys)
    if _survey_table(run, run.warehouse.folder(name), Users(names)).live:
        run.warehouse.apply_vectors(run.spark, name)


def _settle_counts(run: Run) -> None:
    """The mark that the next ingest goes on from, counted anew: a commit of `events` that changes no row."""
    place, spark = run.warehouse, run.spark
    note = recounted_mark(run) if place.exists(spark, EVENTS.name) else None
    if note is not None:
        before = place.redacted_before(spark, EVENTS.name)
        place.redact(spark, EVENTS.name, before=before, metadata=note)


def _purge(run: Run, name: str, files: Iterable[Path]) -> None:
    """Delete these files by VACUUM, which first makes sure that the newest version does not need them."""
    listed = [(f"file:{path}", path.stat().st_size, False, 0) for path in sorted(files)]
    run.warehouse.purge(run.spark, name, run.spark.createDataFrame(listed, _INVENTORY))


def _refuse_rest(found: Found, root: Path) -> None:
    """GuardError where any place still names a user, with what to do about it."""
    young = [path for one in found.tables.values() for path in one.young_files]
    named = [*found.stuck, *found.plain, *young]
    named += [path for one in found.tables.values() for path in (*one.live_files, *one.old_files)]
    if not named:
        return
    listed = ", ".join(str(path.relative_to(root)) for path in named[:5])
    raise GuardError(
        f"{len(named)} files still hold the users: {listed}; a log file goes with the table's log retention, a data "
        f"file that no commit names counts as dead after {ORPHAN_HOURS} hours, anything else was written meanwhile: "
        "run again"
    )
