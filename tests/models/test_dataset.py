from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dynamix.errors import EnvironmentTrouble, InputError
from dynamix.models.batch import ITEM_MATCH, ragged_take, stream_rank
from dynamix.models.dataset import JaggedRows, load_rows, rows_from_table
from dynamix.models.hashing import bucket, hash_ids, spark_xxhash64

HEADS = ("click", "conversion")


def test_ids_hash_alike_in_another_process() -> None:
    code = (
        "import pyarrow as pa; from dynamix.models.hashing import hash_ids; "
        "print(hash_ids(pa.array(['x', None, 'ü'])).tolist())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    here = hash_ids(pa.array(["x", None, "ü"]))
    assert out.strip() == str(here.tolist())
    assert here[1] == 0 and len(set(here)) == 3


def test_missing_ids_have_bucket_zero_and_others_never() -> None:
    found = bucket(hash_ids(pa.array([None, *map(str, range(500))])), 10)
    assert found[0] == 0
    assert set(found[1:]) == set(range(1, 10))


def test_xxhash_of_the_empty_string_is_the_published_one() -> None:
    from dynamix.models.hashing import _xxh64

    assert _xxh64(b"", 0) == 0xEF46DB3751D8E999
    assert _xxh64(b"abc", 0) == 0x44BC2CF5AD770999


def test_arrow_table_becomes_values_and_offsets(table: Callable[..., pa.Table]) -> None:
    source = table([2, 0, 3])
    rows = rows_from_table(source, heads=HEADS, item_buckets=50)
    for i, name in enumerate(rows.impression):
        original = source.to_pylist()[int(name[1:])]
        a, b = rows.offsets[i], rows.offsets[i + 1]
        assert rows.stream[a:b].tolist() == original["hist_stream"]
        assert rows.z[a:b].tolist() == pytest.approx(original["hist_z"])
        same = [item is not None and item == original["item_id"] for item in original["hist_item"]]
        assert ((rows.match[a:b] & ITEM_MATCH) > 0).tolist() == same


def test_null_positions_and_labels_stay_unknown(table: Callable[..., pa.Table]) -> None:
    source = table([1, 1])
    unknown = pa.array([None, 1.0], pa.float64())
    source = source.set_column(source.schema.get_field_index("label_click"), "label_click", unknown)
    rows = rows_from_table(source, heads=HEADS, item_buckets=50, in_order=True)
    assert np.isnan(rows.labels["click"]).tolist() == [True, False]
    assert rows.dense[:, 1].tolist() == [1.0, 0.0]


def test_row_order_does_not_depend_on_the_files(table: Callable[..., pa.Table], tmp_path: Path) -> None:
    source = table([3, 0, 2, 5, 1, 4])
    pq.write_table(source.slice(0, 2), tmp_path / "a.parquet")
    pq.write_table(source.slice(2), tmp_path / "b.parquet")
    paths = [str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")]
    one, two = (load_rows(p, heads=HEADS, item_buckets=50) for p in (paths, paths[::-1]))
    assert one.impression.tolist() == two.impression.tolist()
    assert np.array_equal(one.z, two.z)


def test_missing_column_and_lost_file_are_said(table: Callable[..., pa.Table], tmp_path: Path) -> None:
    pq.write_table(table([1]).drop_columns(["hist_z"]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="hist_z"):
        load_rows([str(tmp_path / "a.parquet")], heads=HEADS, item_buckets=50)
    with pytest.raises(EnvironmentTrouble, match="dynamix train"):
        load_rows([str(tmp_path / "none.parquet")], heads=HEADS, item_buckets=50)


def test_fault_41_columns_are_taken_by_name_in_any_order(
    table: Callable[..., pa.Table], tmp_path: Path
) -> None:
    source = table([2, 0, 3])
    pq.write_table(source, tmp_path / "a.parquet")
    pq.write_table(source.select(source.column_names[::-1]), tmp_path / "b.parquet")
    one, two = (load_rows([str(tmp_path / f"{name}.parquet")], heads=HEADS, item_buckets=50) for name in "ab")
    for name in ("impression", "segment", "surface", "dense", "stream", "z", "item", "dwell_bin"):
        assert np.array_equal(getattr(one, name), getattr(two, name)), name


def test_unequal_history_arrays_are_refused(table: Callable[..., pa.Table]) -> None:
    source = table([2, 1])
    short = pa.array([[0.0], [0.0]], pa.list_(pa.float32()))
    with pytest.raises(InputError, match="hist_z"):
        rows_from_table(
            source.set_column(source.schema.get_field_index("hist_z"), "hist_z", short),
            heads=HEADS,
            item_buckets=9,
        )


def test_ragged_take_repeats_and_reorders() -> None:
    offsets, index = ragged_take(np.array([0, 2, 2, 5]), np.array([2, 1, 0, 2]))
    assert (offsets.tolist(), index.tolist()) == ([0, 3, 3, 5, 8], [2, 3, 4, 0, 1, 2, 3, 4])


def test_rank_counts_newer_events_of_the_same_row_and_stream() -> None:
    stream = np.array([1, 1, 0, 1, 1, 0])
    assert stream_rank(np.array([0, 4, 6]), stream).tolist() == [2, 1, 0, 0, 0, 0]
    keep = np.array([True, True, True, False, True, True])
    assert stream_rank(np.array([0, 4, 6]), stream, keep=keep)[keep].tolist() == [1, 0, 0, 0, 0]


def test_batches_cover_every_row_once_and_follow_the_generator(rows: JaggedRows) -> None:
    def users(seed: int | None) -> list[int]:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return [int(u) for b in rows.batches(7, generator) for u in b.check().user.tolist()]  # type: ignore[union-attr]

    assert users(None) == rows.user.tolist()
    assert sorted(users(0)) == sorted(rows.user.tolist())
    assert users(0) == users(0) != users(1)


def test_mask_keeps_the_newest_of_each_stream_except_for_the_holdout(rows: JaggedRows) -> None:
    quotas = np.full((3, 2, 4), 1, np.int32)
    quotas[1, :, 2] = 0
    held = replace(rows, holdout=rows.user == rows.user[-1])
    cut = held.under_mask(quotas)
    for i in range(len(rows)):
        before = rows.stream[rows.offsets[i] : rows.offsets[i + 1]]
        after = cut.stream[cut.offsets[i] : cut.offsets[i + 1]].tolist()
        if held.holdout[i]:
            assert after == before.tolist()
        else:
            gone = {2} if rows.segment[i] == 1 else set()
            assert sorted(after) == sorted(set(before.tolist()) - gone)


def test_parts_split_the_rows(rows: JaggedRows) -> None:
    assert sum(len(rows.select(p)) for p in ("train", "validate", "test")) == len(rows)


def test_row_cap_takes_whole_users(rows: JaggedRows) -> None:
    capped = rows.cap_users(10)
    assert 10 <= len(capped) < 14
    for user in np.unique(capped.user):
        assert (capped.user == user).sum() == (rows.user == user).sum()


@pytest.mark.spark
def test_holdout_hash_equals_spark(spark: object) -> None:
    from pyspark.sql import functions as F

    users = ["", "u1", "a longer user id that needs the four lanes", "ü" * 20]
    frame = spark.createDataFrame([(u,) for u in users], "u string")  # type: ignore[attr-defined]
    found = [r[0] for r in frame.select(F.xxhash64(F.lit("holdout"), "u")).collect()]
    assert found == [spark_xxhash64("holdout", u) for u in users]
