"""The crash matrix: `dynamix run` killed with SIGKILL at every commit, then run again (docs/faults.md 2, 3, 4).

The second day of a small world is run on the warehouse of the first. Each case starts from the warehouse before the
step, kills a real process at one point, and runs again: every table must hold what an undisturbed run leaves. The
first day adds the creation of each table; a third cycle, the second day under a gate that retires the new mask, what a
training commits from that status on. Points are counted in undisturbed runs: one without a case is a failure.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from cycles import open_world
from faults.points import AFTER, BEFORE, DURING
from faults.processes import Served, copy_warehouse, killed_run, served
from faults.two_days import SETTINGS, Cycle, calm_cycle, contents, deliveries, run_command, turned_down
from pyspark.sql import SparkSession
from stand_ins import failing_store, out_of_order

from dynamix.errors import ConfigError, EnvironmentTrouble
from dynamix.features.tables import Warehouse
from dynamix.jobs.run import STEPS, execute, run_all
from dynamix.jobs.train import train
from dynamix.models.registry import ALIASES, RANKER, SEGMENTER, Registry, artefact_folder, find, move_alias
from dynamix.models.service import RankerService

pytestmark = [pytest.mark.spark, pytest.mark.slow]

COMMITS = {
    "ingest": ("events_quarantine", "events"),
    "features": ("ebf_session", "streams", "user_stats", "ebf_surface"),
    "segment": ("segments", "segment_registry", f"alias {SEGMENTER}@challenger"),
    "mask": ("cell_stats", "masks", "mask_audit", "mask_audit#2"),
    "train": (
        "training_rows", "training_rows#2", "mask_audit", "masks", "masks#2", f"alias {RANKER}@challenger",
        f"alias {RANKER}@champion",
    ),
    "score": ("scores",),
}  # fmt: skip
"""What each step commits, in order, before its row of the run log. The mask of the day before is watched
(`mask_audit#2`), and retired (`masks`) for the new one, which is published (`masks#2`)."""
CREATED = {
    step: tuple(dict.fromkeys(w.partition("#")[0] for w in what if not w.startswith("alias")))
    for step, what in COMMITS.items()
}


def _second_day() -> list[tuple[str, str]]:
    """(point, moment): before a step's first commit, during each of its commits, around that of the log."""
    cases = []
    for step, commits in COMMITS.items():
        cases.append((f"{step}/{commits[0]}", BEFORE))
        cases += [(f"{step}/{what}", DURING) for what in commits]
        cases += [(f"{step}/{commits[-1]}", AFTER), (f"{step}/run_log", DURING), (f"{step}/run_log", AFTER)]
    return cases


def _first_day() -> list[tuple[str, str]]:
    seen: set[str] = set()
    cases = []
    for step, names in CREATED.items():
        for name in (*names, "run_log"):
            if name not in seen:
                cases.append((f"{step}/create {name}", DURING))
            seen.add(name)
    return cases


def _turned_down() -> list[tuple[str, str]]:
    commits = ["masks", *(what for what in COMMITS["train"] if what.startswith("alias"))]
    return [*((f"train/{what}", DURING) for what in (*commits, "run_log")), ("train/run_log", AFTER)]


SECOND, FIRST, TURNED_DOWN = _second_day(), _first_day(), _turned_down()
TO_THE_END = {f"{step}/{commits[-1]}" for step, commits in COMMITS.items()}
"""Killed during these, the next run goes on to the end of the cycle; elsewhere to the end of the step."""


@pytest.fixture(scope="module")
def days(
    few_positives: None, spark: SparkSession, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Cycle]:
    """Plans are others here than in the processes that are killed; what the tables hold is not."""
    folder = tmp_path_factory.mktemp("days")
    first, second = deliveries(folder)
    one = calm_cycle(spark, first, folder / "none", folder / "1")
    end = one.bases["end"]
    champion = find(Registry(end / "_dynamix"), RANKER, "champion")
    if champion is None:  # by hand, so that the second day has one to hold against
        move_alias(Registry(end / "_dynamix"), RANKER, "champion", "1", expected=None)
    two = calm_cycle(spark, second, end, folder / "2")
    with turned_down():
        return {1: one, 2: two, 3: calm_cycle(spark, second, two.bases["train"], folder / "3", begin="train")}


@pytest.fixture(autouse=True, scope="module")
def few_positives() -> Iterator[None]:
    """A world of a few hundred users still promotes; the killed processes do the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dynamix.models.evidence.MIN_POSITIVES", 1)
        yield


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served("killed.py") as process:
        yield process


def test_every_commit_of_an_undisturbed_run_has_a_case(days: dict[int, Cycle]) -> None:
    """Nothing is created on the second day; the first one commits what the second does and creates every table."""
    counted = {day: set(cycle.points) for day, cycle in days.items()}
    assert counted[2] == {point for point, moment in SECOND if moment == DURING}
    created = {point for point in counted[1] if "/create " in point}
    assert created == {point for point, _ in FIRST}
    assert counted[1] - created <= counted[2]
    trained = [point for point in days[3].points if point.startswith("train/")]
    asked = [point for point, moment in TURNED_DOWN if moment == DURING]
    assert trained[trained.index(asked[0]) :] == asked
    assert "retired" in days[3].contents["train"]["masks.status"]
    assert days[3].contents["train"]["masks.status"] != days[2].contents["train"]["masks.status"]
    steps = {point.partition("/")[0] for point in counted[2]}
    assert steps == set(STEPS)
    for step in steps:
        assert {m for p, m in SECOND if p.startswith(f"{step}/")} == {BEFORE, DURING, AFTER}


@pytest.mark.parametrize(
    ("day", "point", "moment"),
    [(day, *case) for day, cases in ((2, SECOND), (1, FIRST), (3, TURNED_DOWN)) for case in cases],
)
def test_a_run_killed_there_and_run_again_leaves_what_an_undisturbed_one_leaves(
    spark: SparkSession, days: dict[int, Cycle], server: Served, tmp_path: Path,
    record_property: Callable[[str, object], None], day: int, point: str, moment: str,
) -> None:  # fmt: skip
    record_property("crash", f"{day}|{point}|{moment}")
    cycle, (step, _, what) = days[day], point.partition("/")
    base, place = cycle.bases[step], tmp_path / "W"
    copy_warehouse(base, place)
    command, refused = run_command(cycle.world, place), day == 3
    status, said = killed_run(
        server, command, moment=moment, point=point, folder=tmp_path, turned_down=refused
    )
    assert status == -9, said[-3000:]
    _only_what_was_committed_is_there(base, place, what=what, moment=moment)
    assert _bad_aliases(place) == []
    with turned_down() if refused else nullcontext():
        skipped = _run_again(spark, cycle, place, step, whole=moment == DURING and point in TO_THE_END)
    assert (step in skipped) == (what == "run_log" and moment == AFTER)
    last = "score" if moment == DURING and point in TO_THE_END else step
    found = contents(spark, place, known=cycle.contents[last], base=cycle.after(last))
    assert found == cycle.contents[last]
    assert _bad_aliases(place) == []
    shutil.rmtree(tmp_path)


def test_fault_04_without_the_log_a_killed_step_would_be_taken_for_done(
    spark: SparkSession, days: dict[int, Cycle], server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """The protection taken away: if tables that exist counted as done, masks would stay those of the day before."""
    cycle, place = days[2], tmp_path / "W"
    copy_warehouse(cycle.bases["mask"], place)
    command = run_command(cycle.world, place)
    status, said = killed_run(server, command, moment=DURING, point="mask/masks", folder=tmp_path)
    assert status == -9, said[-3000:]
    monkeypatch.setattr("dynamix.jobs.run.is_done", lambda *_: True)
    assert _run_again(spark, cycle, place, "mask", whole=False) == ["ingest", "features", "segment", "mask"]
    found = contents(spark, place, known=cycle.contents["mask"], base=cycle.after("mask"))
    assert found["masks"] != cycle.contents["mask"]["masks"]


def _registers_nothing(path: str) -> tuple[int, dict[str, str]]:
    """A tracking server that knows no alias and fails at everything else."""
    if path.endswith("/alias"):
        return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such alias"}
    return out_of_order()(path)


def test_fault_36_a_training_that_cannot_be_registered_stays_on_disk(
    spark: SparkSession, days: dict[int, Cycle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is down is said before anything is trained; one that fails later leaves model and evidence."""
    cycle, place = days[2], tmp_path / "W"
    copy_warehouse(cycle.bases["train"], place)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = open_world(spark, cycle.world, place, *SETTINGS)
    trained = len(run.warehouse.commits("training_rows"))
    with pytest.raises(EnvironmentTrouble, match=r"tracking store http://127\.0\.0\.1:9 failed"):
        train(run, tracking_uri="http://127.0.0.1:9")
    assert len(run.warehouse.commits("training_rows")) == trained
    with (
        failing_store(_registers_nothing) as port,
        pytest.raises(EnvironmentTrouble, match=rf"model kept in runs/{run.run_id}/model") as said,
    ):
        train(run, tracking_uri=f"http://127.0.0.1:{port}")
    assert said.value.exit_code == 5
    RankerService.load(run.folder / "model")
    assert json.loads((run.folder / "evidence.json").read_text(encoding="utf-8"))["winner"]
    assert (run.folder / "predictions.parquet").is_file()
    found = contents(spark, place, known=cycle.contents["train"], base=cycle.after("train"))
    assert found == cycle.contents["train"]
    later = open_world(spark, cycle.world, place, *SETTINGS)
    with pytest.raises(ConfigError, match=f"'none' does not exist; known: .*{run.run_id}"):
        train(later, register_from="none")
    facts = train(later, register_from=run.run_id).facts
    challenger = find(Registry(later.warehouse.private), RANKER, "challenger")
    assert challenger is not None and facts["model"] == challenger.address
    assert challenger.tags["run_id"] == run.run_id
    assert _bad_aliases(place) == []


def _run_again(spark: SparkSession, cycle: Cycle, place: Path, step: str, *, whole: bool) -> list[str]:
    """The same run once more, to the end of the step or of the cycle; the steps that it skipped."""
    run = open_world(spark, cycle.world, place, *SETTINGS)
    if whole:
        return run_all(run, events=str(cycle.world)).skipped
    skipped = []
    for verb in STEPS:
        source = str(cycle.world) if verb == "ingest" else None
        skipped += execute(run, verb, skip=True, source=source).skipped
        if verb == step:
            break
    return skipped


def _only_what_was_committed_is_there(base: Path, place: Path, *, what: str, moment: str) -> None:
    """The table is at its previous version, or one further; files that nobody committed lie beside it."""
    name = what.removeprefix("create ").partition("#")[0]
    if what.startswith("alias"):
        return
    before, after = (len(Warehouse(root).commits(name)) for root in (base, place))
    earlier = int(what.endswith("#2"))
    assert after == before + earlier + (moment == AFTER)
    files = [{p.name for p in (root / name).rglob("*.parquet")} for root in (base, place)]
    if moment == DURING and not what.startswith("create "):
        assert len(files[1] - files[0]) > earlier, "the process was killed before it wrote a file"


def _bad_aliases(place: Path) -> list[str]:
    """Aliases of versions that are half made: without the tags of a finished registration, or without artefacts."""
    registry = Registry(place / "_dynamix")
    if not (registry.private / "mlflow.db").exists():
        return []
    bad = []
    for name, pin in ((RANKER, "training_rows_version"), (SEGMENTER, "segment_version")):
        for alias in ALIASES:
            version = find(registry, name, alias)
            if version is None:
                continue
            folder, _ = artefact_folder(registry, f"models:/{name}@{alias}")
            files = [p for p in folder.parent.rglob("*") if p.is_file()]
            if {"run_id", "run_date", pin} - set(version.tags) or not files:
                bad.append(f"{name}@{alias} -> {version.version}")
    return bad
