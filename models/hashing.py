"""Stable 64-bit hashes of ids: equal in every process, machine and run, without a vocabulary."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pandas.util import hash_array

from dynamix.features.quotas import HOLDOUT_PER_MILLE

NONE = np.int64(0)
"""Hash of a missing id; a present id never hashes to it."""
_KEY = "dynamix-ebf-0001"


def hash_ids(ids: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
    """Hash strings to int64 (N,), null to 0. Only distinct values are hashed (SipHash with a fixed key)."""
    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks()
    if len(ids) == 0:
        return np.zeros(0, np.int64)
    coded = pc.dictionary_encode(ids.cast(pa.string()))
    if isinstance(coded, pa.ChunkedArray):
        coded = coded.combine_chunks()
    words = coded.dictionary.to_numpy(zero_copy_only=False).astype(object)
    table = hash_array(words, hash_key=_KEY, categorize=False).view(np.int64)
    table = np.append(np.where(table == NONE, np.int64(1), table), NONE)
    codes = pc.fill_null(coded.indices, len(words)).to_numpy(zero_copy_only=False)
    return np.asarray(table[codes], np.int64)


def bucket(hashes: NDArray[np.int64], buckets: int) -> NDArray[np.int32]:
    """Bucket 1..buckets-1 of each hash, 0 for a missing id. Collisions are meant; matches use the hash."""
    inside = (hashes.view(np.uint64) % np.uint64(buckets - 1)).astype(np.int32) + 1
    return np.where(hashes == NONE, np.int32(0), inside)


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64 finaliser: uniform 64-bit words from counters or hashes, element by element."""
    with np.errstate(over="ignore"):
        x = values + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


_M64 = (1 << 64) - 1
_P1, _P2, _P3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
_P4, _P5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5


def spark_xxhash64(*texts: str) -> int:
    """Spark's `xxhash64` over string columns: XXH64 of each, seeded by the hash so far, from 42. Signed 64 bit."""
    seed = 42
    for text in texts:
        seed = _xxh64(text.encode(), seed)
    return seed - (1 << 64) if seed >> 63 else seed


def is_held_out(user: str) -> bool:
    """Whether the user keeps everything under every mask: the rule of features/training.py, `holdout_users`."""
    return spark_xxhash64("holdout", user) % 1000 < HOLDOUT_PER_MILLE


def _rotate(x: int, bits: int) -> int:
    return ((x << bits) | (x >> (64 - bits))) & _M64


def _round(lane: int, word: int) -> int:
    return _rotate((lane + word * _P2) & _M64, 31) * _P1 & _M64


def _xxh64(data: bytes, seed: int) -> int:
    """The 64-bit xxHash of `data`."""
    at, n = 0, len(data)
    if n >= 32:
        lanes = [(seed + _P1 + _P2) & _M64, (seed + _P2) & _M64, seed, (seed - _P1) & _M64]
        while at + 32 <= n:
            words = [int.from_bytes(data[at + 8 * i : at + 8 * i + 8], "little") for i in range(4)]
            lanes = [_round(lane, word) for lane, word in zip(lanes, words, strict=True)]
            at += 32
        h = sum(_rotate(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True)) & _M64
        for lane in lanes:
            h = ((h ^ _round(0, lane)) * _P1 + _P4) & _M64
    else:
        h = (seed + _P5) & _M64
    h = (h + n) & _M64
    for size in (8, 4, 1):
        while at + size <= n:
            h = _absorb(h, int.from_bytes(data[at : at + size], "little"), size)
            at += size
    h = (h ^ (h >> 33)) * _P2 & _M64
    h = (h ^ (h >> 29)) * _P3 & _M64
    return h ^ (h >> 32)


def _absorb(h: int, word: int, size: int) -> int:
    if size == 8:
        return (_rotate(h ^ _round(0, word), 27) * _P1 + _P4) & _M64
    if size == 4:
        return (_rotate(h ^ (word * _P1 & _M64), 23) * _P2 + _P3) & _M64
    return _rotate(h ^ (word * _P5 & _M64), 11) * _P1 & _M64
