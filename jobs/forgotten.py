"""Users who were forgotten: salted hashes under the private folder, by which `ingest` leaves their rows out.

Without them the next reading of the whole source would bring the users back. Hashes are pseudonyms, not nothing:
who holds this file and guesses an id can confirm the guess (docs/privacy.md).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from dynamix.jobs.files import write_whole

FILE = "forgotten.json"


@dataclass(frozen=True)
class Forgotten:
    """The salt of a warehouse and the hashes of its forgotten users."""

    salt: str
    hashes: frozenset[str]

    def knows(self, user: str) -> bool:
        return self._hash(user) in self.hashes

    def add(self, users: Iterable[str]) -> Forgotten:
        return Forgotten(self.salt, self.hashes | {self._hash(user) for user in users})

    def _hash(self, user: str) -> str:
        return hashlib.sha256((self.salt + user).encode()).hexdigest()

    def split(self, spark: SparkSession, raw: DataFrame) -> tuple[DataFrame, DataFrame]:
        """(rows of others, rows of forgotten users) of a frame with a user_id; rows without one are of others."""
        listed = spark.createDataFrame([(one,) for one in sorted(self.hashes)], "_forgotten string")
        own = F.sha2(F.concat(F.lit(self.salt), F.col("user_id").cast("string")), 256)
        same = own == F.col("_forgotten")
        small = F.broadcast(listed)
        return raw.join(small, same, "left_anti"), raw.join(small, same, "left_semi")


def load_forgotten(private: Path) -> Forgotten:
    """What is stored under the private folder; a new salt and nobody where nothing is."""
    path = private / FILE
    if not path.is_file():
        return Forgotten(os.urandom(16).hex(), frozenset())
    tree = json.loads(path.read_text(encoding="utf-8"))
    return Forgotten(tree["salt"], frozenset(tree["hashes"]))


def store_forgotten(private: Path, forgotten: Forgotten) -> None:
    """Replace the stored file as a whole."""
    tree = {"salt": forgotten.salt, "hashes": sorted(forgotten.hashes)}
    write_whole(private / FILE, json.dumps(tree))
