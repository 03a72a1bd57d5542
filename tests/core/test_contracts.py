"""The table contracts are consistent in themselves."""

from __future__ import annotations

import pytest

from dynamix.contracts import CHANNELS, DWELL_BIN_EDGES_S, N_DWELL_BINS, NO_DWELL_BIN, TABLES, Table

TABLE_LIST = list(TABLES.values())


@pytest.mark.parametrize("table", TABLE_LIST, ids=lambda t: t.name)
def test_keys_and_partitions_are_columns_that_are_never_null(table: Table) -> None:
    required = {c.name for c in table.columns if not c.nullable}
    assert set(table.key) <= required
    assert set(table.partition_by) <= required
    assert len(set(table.names)) == len(table.columns)


def test_twelve_dwell_bins_and_one_for_no_dwell() -> None:
    assert len(DWELL_BIN_EDGES_S) + 1 == NO_DWELL_BIN == N_DWELL_BINS - 1
    assert list(DWELL_BIN_EDGES_S) == sorted(DWELL_BIN_EDGES_S)


def test_the_channel_block_ends_with_match() -> None:
    assert CHANNELS == ("dwell", "count", "recency", "censored", "presence", "match")
