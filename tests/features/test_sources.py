"""Importers of public data sets: formats on hand-made rows, balances on the real files where they are present."""

from __future__ import annotations

import hashlib
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from dynamix.config import load_config
from dynamix.contracts import RAW_COLUMNS
from dynamix.errors import ConfigError, InputError
from dynamix.features.sources import kuairand, trivago
from dynamix.features.sources.files import hash_ids

Row = dict[str, object]

STEP: Row = {
    "user_id": "ann",
    "session_id": "s1",
    "timestamp": 1_541_599_500,
    "step": 1,
    "action_type": "interaction item image",
    "reference": "77",
    "platform": "FR",
    "city": "Nice, France",
    "device": "mobile",
    "current_filters": None,
    "impressions": None,
    "prices": None,
}
VIDEO: Row = {
    "user_id": 5,
    "video_id": 90,
    "date": 20220410,
    "hourmin": 1700,
    "time_ms": 1_649_581_149_287,
    "is_click": 1,
    "is_follow": 0,
    "is_comment": 0,
    "is_forward": 0,
    "long_view": 1,
    "play_time_ms": 4000,
    "duration_ms": 9000,
    "comment_stay_time": 0,
    "is_profile_enter": 0,
    "label": 1,
    "timestamp": "2022-04-10 08:59:09",
}


def _sha(*parts: object) -> str:
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()[:32]


def _trivago(folder: Path, *rows: Row) -> list[Row]:
    folder.mkdir(exist_ok=True)
    schema = {k: pa.int64() if kind == "integer" else pa.string() for k, kind in trivago.COLUMNS.items()}
    pq.write_table(
        pa.Table.from_pylist([STEP | row for row in rows], pa.schema(schema)), folder / trivago.FILE_NAME
    )
    trivago.import_trivago(folder, folder / "out")
    return pq.read_table(folder / "out" / "events").to_pylist()


def _kuairand(folder: Path, *rows: Row) -> list[Row]:
    lines = ["\t".join(VIDEO)] + ["\t".join(map(str, (VIDEO | row).values())) for row in rows]
    path = folder / kuairand.FILE_NAME
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    kuairand.import_kuairand(path, folder / "out")
    return pq.read_table(folder / "out" / "events").to_pylist()


CLICK: Row = {
    "timestamp": 1_541_599_553,
    "step": 3,
    "action_type": "clickout item",
    "reference": "8",
    "impressions": "77|8|9",
    "prices": "71|107|119",
}


def test_hashed_ids_keep_columns_apart_and_nulls_from_empty_text() -> None:
    ids = hash_ids(pa.array(["a", "ab", "a", "a"]), pa.array(["bc", "c", None, ""])).to_pylist()
    assert len(set(ids)) == 4
    assert ids[0] == _sha("a", "bc")


def test_a_click_out_unrolls_its_list_into_impressions_at_its_own_time(tmp_path: Path) -> None:
    image, click, *listed = _trivago(tmp_path, {}, CLICK)
    request = _sha("ann", "s1", 1_541_599_553, 3)
    assert (image["surface"], image["event_type"], image["item_id"]) == ("gallery", "image", "77")
    assert (image["request_id"], image["position"], image["dwell_ms"]) == (None, None, None)
    assert image["event_id"] == _sha("ann", "s1", 1_541_599_500, 1, "interaction item image", "77")
    assert (click["surface"], click["event_type"], click["item_id"]) == ("result_list", "click_out", "8")
    assert (click["request_id"], click["position"], click["event_seq"], click["value"]) == (
        request,
        2,
        3,
        None,
    )
    when = datetime.fromtimestamp(1_541_599_553, UTC)
    assert [(row["item_id"], row["position"], row["value"]) for row in listed] == [
        ("77", 1, 71.0),
        ("8", 2, 107.0),
        ("9", 3, 119.0),
    ]
    for place, row in enumerate(listed, start=1):
        assert (row["event_type"], row["surface"], row["request_id"]) == (
            "impression",
            "result_list",
            request,
        )
        assert row["event_ts"] == row["ingest_ts"] == click["event_ts"] == when
        assert (row["event_seq"], row["session_id"], row["city"]) == (3, "s1", "Nice, France")
        assert row["event_id"] == _sha(request, place)


@pytest.mark.parametrize(
    ("action", "reference", "surface", "event_type", "item"),
    [
        ("search for destination", "Rome, Italy", "search", "search_destination", None),
        ("search for poi", "4711", "search", "search_poi", None),  # digits, and still no item
        ("search for item", "12", "search", "search_item", "12"),
        ("filter selection", "unknown", "filter_sort", "filter", None),
        ("change of sort order", "price", "filter_sort", "sort", None),
        ("interaction item info", "unknown", "item_detail", "info", None),
        ("interaction item info", "12", "item_detail", "info", "12"),
        ("interaction item rating", "12", "item_detail", "rating", "12"),
        ("interaction item deals", "12", "item_detail", "deals", "12"),
    ],
)
def test_actions_become_streams_and_references_items_or_text(
    tmp_path: Path, action: str, reference: str, surface: str, event_type: str, item: str | None
) -> None:
    (row,) = _trivago(tmp_path, {"action_type": action, "reference": reference})
    assert (row["surface"], row["event_type"], row["item_id"]) == (surface, event_type, item)
    assert row["reference"] == (None if item else reference)


def test_a_click_out_missing_from_its_list_has_no_position(tmp_path: Path) -> None:
    rows = _trivago(tmp_path, CLICK | {"reference": "5"})
    assert rows[0]["position"] is None
    assert len(rows) == 4


def test_equal_steps_in_one_second_differ_by_step(tmp_path: Path) -> None:
    rows = _trivago(tmp_path, *({"step": step} for step in (1, 2, 3)))
    assert len({row["event_id"] for row in rows}) == 3
    assert [row["event_seq"] for row in rows] == [1, 2, 3]


def test_one_video_row_becomes_one_event_per_surface_of_one_request(tmp_path: Path) -> None:
    full = {"comment_stay_time": 700, "is_profile_enter": 1, "is_follow": 1, "duration_ms": 0}
    rows = _kuairand(tmp_path, full)
    found = [(row["surface"], row["event_type"], row["dwell_ms"]) for row in rows]
    assert found == [
        ("player", "impression", None),
        ("player", "view", 4000),
        ("comments", "view", 700),
        ("profile", "profile_enter", None),
        ("player", "follow", None),
    ]
    for row in rows:
        assert (row["user_id"], row["item_id"], row["session_id"]) == ("5", "90", "5-20220410")
        assert row["request_id"] == _sha(5, 90, 1_649_581_149_287)
        assert row["event_id"] == _sha(5, 90, 1_649_581_149_287, row["surface"], row["event_type"])
        assert row["event_ts"] == datetime.fromtimestamp(1_649_581_149, UTC).replace(microsecond=287_000)
        assert (row["duration_ms"], row["long_view"], row["label"]) == (None, 1, 1)


def test_a_video_that_was_shown_and_not_played_is_an_impression_only(tmp_path: Path) -> None:
    (row,) = _kuairand(tmp_path, {"play_time_ms": 0})
    assert row["event_type"] == "impression"


def test_copies_that_differ_in_the_hour_become_equal_rows(tmp_path: Path) -> None:
    rows = _kuairand(tmp_path, {}, {"hourmin": 1800, "timestamp": "2022-04-10 09:59:09"})
    assert rows[0] == rows[1]  # the two impressions
    assert rows[2] == rows[3]  # the two views


def test_imports_write_every_canonical_column_and_a_valid_config(tmp_path: Path) -> None:
    (tmp_path / "k").mkdir()
    _trivago(tmp_path / "t", CLICK)
    _kuairand(tmp_path / "k", {})
    for folder, attributes in (("t", trivago.ATTRIBUTES), ("k", kuairand.ATTRIBUTES)):
        out = tmp_path / folder / "out"
        assert pq.read_table(out / "events").column_names == [*(c.name for c in RAW_COLUMNS), *attributes]
        config = load_config(files=[out / "dynamix.yaml"])
        assert config.attributes == attributes
        assert config.heads() == ("conversion",)
        assert config.attribution.view_window_s == config.attribution.click_window_s == 0
        assert config.attribution.join_on == (("request_id", "item_id"),)
    config = load_config(files=[tmp_path / "t" / "out" / "dynamix.yaml"])
    assert (config.session.rule, config.dwell.derive, config.history.embargo_s) == ("gap", True, 0)
    assert (config.conversion_types, config.meaning("conversion")) == (("click_out",), "paid click-out")
    config = load_config(files=[tmp_path / "k" / "out" / "dynamix.yaml"])
    assert (config.session.rule, config.dwell.derive, config.history.embargo_s) == ("given", False, 60)
    assert (config.conversion_types, config.meaning("conversion")) == (("profile_enter",), "profile entered")


def _write(folder: Path, name: str, table: pa.Table) -> Path:
    pq.write_table(table, folder / name)
    return folder / name


def test_trouble_with_the_source_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    out, good = tmp_path / "out", pa.Table.from_pylist([STEP | CLICK])
    with pytest.raises(InputError, match="no such file or folder"):
        trivago.import_trivago(tmp_path / "nowhere", out)
    with pytest.raises(InputError, match="not found"):
        trivago.import_trivago(tmp_path, out)
    source = _write(tmp_path, "a.parquet", good.drop_columns(["step", "city"]))
    with pytest.raises(InputError, match="missing columns step, city"):
        trivago.import_trivago(source, out)
    source = _write(tmp_path, "a.parquet", good.slice(0, 0))
    with pytest.raises(InputError, match="no rows"):
        trivago.import_trivago(source, out)
    source = _write(tmp_path, "a.parquet", good.set_column(2, "timestamp", pa.array(["yesterday"])))
    with pytest.raises(InputError, match="timestamp has type string"):
        trivago.import_trivago(source, out)
    source = _write(tmp_path, "a.parquet", good.set_column(4, "action_type", pa.array(["dance"])))
    with pytest.raises(InputError, match="'dance'"):
        trivago.import_trivago(source, out)
    source = _write(tmp_path, "a.parquet", pa.Table.from_pylist([STEP | CLICK | {"prices": "71|107"}]))
    with pytest.raises(InputError, match="different length"):
        trivago.import_trivago(source, out)
    source = _write(tmp_path, "a.parquet", pa.Table.from_pylist([STEP | CLICK | {"prices": "71|free|7"}]))
    with pytest.raises(InputError, match="no number"):
        trivago.import_trivago(source, out)
    (tmp_path / "b.parquet").write_bytes(b"this is no parquet")
    with pytest.raises(InputError, match="cannot be read"):
        trivago.import_trivago(tmp_path / "b.parquet", out)
    assert not out.exists()


def test_kuairand_refuses_missing_columns_and_negative_values(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("user_id\tvideo_id\n1\t2\n")
    with pytest.raises(InputError, match="missing columns date"):
        kuairand.import_kuairand(tmp_path, tmp_path / "out")
    (tmp_path / "a.tsv").unlink()
    with pytest.raises(InputError, match="negative values in play_time_ms"):
        _kuairand(tmp_path, {"play_time_ms": -4})
    assert not (tmp_path / "out").exists()


def test_an_import_does_not_overwrite_a_folder_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.md").write_text("mine")
    with pytest.raises(ConfigError, match=r"notes\.md"):
        _trivago(tmp_path, {})


def _real(data_dir: Path, folder: str, name: str) -> Path:
    if not (data_dir / folder / name).is_file():
        pytest.skip(f"{folder} not found in {data_dir}: optional data set, test skipped")
    return data_dir / folder


def test_the_trivago_sample_keeps_its_row_balance(data_dir: Path, tmp_path: Path) -> None:
    source = _real(data_dir, "trivago-recsys2019-100k", trivago.FILE_NAME)
    summary = trivago.import_trivago(source, tmp_path / "t")
    assert summary.rows_read == 100_003
    assert summary.events == 100_003 + 312_539
    assert (summary.counts["impression"], summary.counts["click_out"]) == (312_539, 13_597)
    events = pq.read_table(tmp_path / "t" / "events")
    assert pc.count_distinct(events["event_id"]).as_py() == events.num_rows
    surfaces = Counter(events.filter(pc.not_equal(events["event_type"], "impression"))["surface"].to_pylist())
    assert surfaces == {
        "search": 3_060 + 1_080 + 1_044,
        "filter_sort": 5_303 + 2_948,
        "gallery": 68_538,
        "item_detail": 1_829 + 1_445 + 1_159,
        "result_list": 13_597,
    }
    clicks = events.filter(pc.equal(events["event_type"], "click_out"))
    assert len(clicks) - clicks["position"].null_count == 13_596  # lists that hold the clicked item
    clicked = set(zip(clicks["request_id"].to_pylist(), clicks["item_id"].to_pylist(), strict=True))
    shown = events.filter(pc.equal(events["event_type"], "impression"))
    pairs = zip(shown["request_id"].to_pylist(), shown["item_id"].to_pylist(), strict=True)
    assert sum(pair in clicked for pair in pairs) == 13_596


def test_the_kuairand_subset_keeps_its_row_balance(data_dir: Path, tmp_path: Path) -> None:
    source = _real(data_dir, "kuairand-27k-likehate", kuairand.FILE_NAME)
    summary = kuairand.import_kuairand(source, tmp_path / "k")
    assert summary.rows_read == summary.counts["impression"] == 41_828
    assert (summary.counts["profile_enter"], summary.counts["follow"]) == (2_214, 304)
    events = pq.read_table(tmp_path / "k" / "events")
    distinct = Counter(
        dict(zip(events["event_id"].to_pylist(), events["event_type"].to_pylist(), strict=True)).values()
    )
    assert distinct["impression"] == 41_828 - 124
    assert (distinct["profile_enter"], distinct["follow"]) == (2_209, 302)
    rows = events.group_by(events.column_names).aggregate([])
    assert rows.num_rows == distinct.total()  # copies agree in every column: duplicates, never conflicts
    assert pc.count_distinct(events["session_id"]).as_py() == 7_280
