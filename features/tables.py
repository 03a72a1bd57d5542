"""The only reader and writer of Delta: explicit tables, partition-wise replacement, pinned versions.

Every write is an overwrite of a stated range (`replaceWhere`) on a table that was created beforehand,
so a rerun gives the same rows (docs/faults.md 1-8). An empty frame never replaces a range unless asked.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import delta.exceptions  # noqa: F401  # conflicts of a local session then come under their own names
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from dynamix.contracts import Table
from dynamix.errors import ConfigError, EnvironmentTrouble, GuardError, InputError
from dynamix.features.content import content_hash, contract_digest
from dynamix.features.spark_settings import session_settings
from dynamix.features.sql_text import create_table, delta_at, named, sound_root
from dynamix.features.table_files import commit_info, delta_folders, local_path, operation

WRITERS = {
    "events": "ingest", "events_quarantine": "ingest", "streams": "features", "ebf_session": "features",
    "ebf_surface": "features", "user_stats": "features", "segments": "segment", "segment_registry": "segment",
    "cell_stats": "mask", "masks": "mask", "mask_audit": "mask", "training_rows": "train", "scores": "score",
    "run_log": "run", "opt_out": "ingest",
}  # fmt: skip
_CONFLICTS = ("ConcurrentAppend", "ConcurrentWrite", "ConcurrentDelete", "ProtocolChanged", "MetadataChanged")
MAINTENANCE = (
    "OPTIMIZE",
    "VACUUM START",
    "VACUUM END",
    "SET TBLPROPERTIES",
    "ADD CONSTRAINT",
    "CREATE TABLE",
)
"""Operations of a commit that change no row."""
_TRIES = 5
REDACTED = "dynamix.redacted_before"
"""Table property: versions before this one held users who were forgotten since (docs/privacy.md)."""
_CHECK = re.compile(
    r"DELTA_VIOLATE_CONSTRAINT_WITH_VALUES\] CHECK constraint (.{1,200}?) violated by", re.DOTALL
)
DISK_FULL = ("No space left", "Disk quota exceeded")
"""How the system says it, at any depth of an error (docs/faults.md 29)."""


@dataclass(frozen=True)
class Warehouse:
    """A directory of Delta folders `root/<table>` with everything else under `root/_dynamix`."""

    root: Path

    def __init__(self, root: str | Path) -> None:
        object.__setattr__(self, "root", sound_root(Path(root).absolute()))

    def __str__(self) -> str:
        return str(self.root)

    @property
    def private(self) -> Path:
        return self.root / "_dynamix"

    def path(self, name: str) -> str:
        return str(self.root / name)

    def exists(self, spark: SparkSession, name: str) -> bool:
        """True iff the table has a first commit."""
        return bool(self.commits(name))

    def read(self, spark: SparkSession, name: str, *, version: int | None = None) -> DataFrame:
        """The table's newest rows, or those of a pinned version. GuardError names the verb that writes it.

        EnvironmentTrouble (exit 5) for a version that is redacted, since users were forgotten after it.
        """
        if not self.exists(spark, name):
            raise GuardError(f"table {name!r} is not in {self}; run `dynamix {WRITERS[name]}` first")
        if version is not None:
            first = self.redacted_before(spark, name)
            if version < first:
                raise EnvironmentTrouble(
                    f"table {name!r} version {version} is redacted: users in it were forgotten; versions from {first} on "
                    "can be read: run the step that asks for it again, so that the pin moves on"
                )
        return self._rows(spark, name, version)

    def _rows(self, spark: SparkSession, name: str, version: int | None) -> DataFrame:
        reader = spark.read.format("delta")
        if version is not None:
            reader = reader.option("versionAsOf", version)
        return reader.load(self.path(name))

    def version(self, spark: SparkSession, name: str) -> int | None:
        """Newest commit number, None where the table is absent."""
        if not self.exists(spark, name):
            return None
        # the names of the commits say it; the table's history would be a Spark job
        return int(self.commits(name)[-1].stem)

    def commits(self, name: str) -> list[Path]:
        """Commit files of the table, oldest first; checkpoints and compacted logs have longer names."""
        return sorted((self.root / name / "_delta_log").glob("[0-9]" * 20 + ".json"))

    def data_version(self, spark: SparkSession, name: str) -> int:
        """Newest commit that changed rows: compaction and property changes do not count."""
        for path in reversed(self.commits(name)):
            did = operation(path)
            if did is None:
                break  # a log of another shape: let Delta say it, which is a Spark job
            if did not in MAINTENANCE:
                return int(path.stem)
        history = spark.sql(f"DESCRIBE HISTORY {self.sql(name)} LIMIT 50")
        rows = history.where(~F.col("operation").isin(*MAINTENANCE)).select("version").limit(1).collect()
        return int(rows[0]["version"]) if rows else 0

    def note(self, name: str, key: str) -> dict[str, Any] | None:
        """User metadata of the newest commit whose metadata has `key`; None where no kept commit has it."""
        if not (self.root / name / "_delta_log").is_dir():
            return None
        for path in reversed(self.commits(name)):
            text = (commit_info(path) or {}).get("userMetadata")
            found = json.loads(text) if text else {}
            if key in found:
                return cast("dict[str, Any]", found)
        return None

    def changed_partitions(self, name: str, column: str, *, since: int) -> set[str] | None:
        """Values of a partition column whose rows changed in commits after version `since`, from the log alone.

        None where the log no longer holds all those commits: then anything may have changed.
        """
        commits = [path for path in self.commits(name) if int(path.stem) > since]
        newest = int(self.commits(name)[-1].stem)
        if newest < since or [int(path.stem) for path in commits] != list(range(since + 1, newest + 1)):
            return None
        values: set[str] = set()
        for path in commits:
            with path.open(encoding="utf-8") as lines:
                for line in lines:
                    action = json.loads(line)
                    file = action.get("add") or action.get("remove")
                    if file is None or not file.get("dataChange", True):
                        continue
                    if column not in file.get("partitionValues", {}):
                        return None
                    values.add(file["partitionValues"][column])
        return values

    def create(self, spark: SparkSession, table: Table, *, definition: str = "") -> None:
        """Create the table from its contract if absent. ConfigError if another definition or contract made it."""
        if self.exists(spark, table.name):
            made = self._properties(spark, table.name)
            stored = made.get("dynamix.config_hash", "")
            if definition and stored and stored != definition:
                raise ConfigError.other_definition(table.name, stored, definition)
            if made.get("dynamix.contract", "") not in ("", contract_digest(table)):
                raise ConfigError.other_contract(table.name, self.path(table.name))
            return
        made = {"dynamix.config_hash": definition, "dynamix.contract": contract_digest(table)}
        statement = create_table(self.sql(table.name), table, properties=made)
        self._remove_empty_log(table.name)
        try:
            _retry(lambda: spark.sql(statement))
        except Exception:
            if not self.exists(spark, table.name):
                raise  # else another first writer has made it meanwhile (docs/faults.md 8)

    def _remove_empty_log(self, name: str) -> None:
        """A creation that was killed leaves a log without a commit, which Delta can neither read nor create."""
        log = self.root / name / "_delta_log"
        for folder in [*sorted((p for p in log.rglob("*") if p.is_dir()), reverse=True), log]:
            with contextlib.suppress(OSError):  # not there, or holds a file
                folder.rmdir()

    def definition(self, spark: SparkSession, name: str) -> str:
        """Hash of the config that created the table, empty where none was stored."""
        return (
            self._properties(spark, name).get("dynamix.config_hash", "") if self.exists(spark, name) else ""
        )

    def _properties(self, spark: SparkSession, name: str) -> dict[str, str]:
        """Properties of a table, from the newest commit that states them; where none is kept, by a Spark job."""
        for path in reversed(self.commits(name)):
            with path.open(encoding="utf-8") as lines:
                for line in lines:
                    if line.startswith('{"metaData"'):
                        return dict(json.loads(line)["metaData"].get("configuration", {}))
        detail = spark.sql(f"DESCRIBE DETAIL {self.sql(name)}").select("properties").collect()
        return dict(detail[0]["properties"])

    def redacted_before(self, spark: SparkSession, name: str) -> int:
        """The first version that can be read since users were forgotten, 0 where nobody was."""
        return int(self._properties(spark, name).get(REDACTED, 0)) if self.exists(spark, name) else 0

    def redact(
        self, spark: SparkSession, name: str, *, before: int, metadata: Mapping[str, object] | None = None
    ) -> None:
        """Refuse all versions before `before` from now on; the commit carries `metadata`."""
        note = {"spark.databricks.delta.commitInfo.userMetadata": json.dumps(metadata, default=str)}
        with session_settings(spark, note if metadata else {}):
            _commit(
                name,
                lambda: spark.sql(
                    f"ALTER TABLE {self.sql(name)} SET TBLPROPERTIES ('{REDACTED}' = '{before}')"
                ),
            )

    def erase(self, spark: SparkSession, name: str, keys: DataFrame) -> None:
        """Delete the rows that agree with a row of `keys`, whose rows are distinct, in all columns of `keys`.

        A MERGE: the predicate of a DELETE, with the ids in it, would stand in the log for good.
        """
        same = " AND ".join(f"t.{named(column)} = k.{named(column)}" for column in keys.columns)
        keys.createOrReplaceTempView("dynamix_keys")
        merge = f"MERGE INTO {self.sql(name)} t USING dynamix_keys k ON {same} WHEN MATCHED THEN DELETE"
        _commit(name, lambda: spark.sql(merge))

    def apply_vectors(self, spark: SparkSession, name: str) -> None:
        """Write files anew from which a deletion vector only hides rows."""
        _commit(name, lambda: spark.sql(f"REORG TABLE {self.sql(name)} APPLY (PURGE)"))

    def purge(self, spark: SparkSession, name: str, inventory: DataFrame) -> None:
        """Delete the files of `inventory` (VACUUM's columns) for good, except what the newest version needs."""
        inventory.createOrReplaceTempView("dynamix_inventory")
        listed = "USING INVENTORY (SELECT * FROM dynamix_inventory) RETAIN 0 HOURS"
        with session_settings(spark, {"spark.databricks.delta.retentionDurationCheck.enabled": "false"}):
            _commit(name, lambda: spark.sql(f"VACUUM {self.sql(name)} {listed}"))

    def sql(self, name: str) -> str:
        """The table as SQL text names it."""
        return delta_at(self.path(name))

    def folder(self, name: str) -> Path:
        """Folder of a table. EnvironmentTrouble (exit 5) for one that is in no folder of this machine."""
        return self.root / name

    def folders(self) -> list[Path]:
        """Folders of all Delta tables here, clones and those of other hands included."""
        return delta_folders(self.root)

    def has_tables(self) -> bool:
        """True iff there is any Delta table."""
        return bool(self.folders())

    def drop(self, name: str) -> None:
        """Remove the table's folder; only `--rebuild` does this."""
        import shutil

        shutil.rmtree(self.root / name, ignore_errors=True)

    def replace(
        self,
        spark: SparkSession,
        table: Table,
        frame: DataFrame,
        *,
        where: str | None = None,
        metadata: Mapping[str, object] | None = None,
        allow_empty: bool = False,
        definition: str = "",
        empty: bool | None = None,
        gather: bool = True,
    ) -> int:
        """Overwrite the rows matching `where` (all rows when None) and return the new version.

        Columns are taken by name and cast to the contract's types; a column that is missing in
        `frame` or unknown to the contract is an error. Raises InputError on an empty frame (fault 5);
        `empty` says whether it is where the caller has counted already, else a job finds out. `gather` brings
        the rows of a partition into one task, for one file, or a few where they are many; False writes them where
        they are, which is faster where all are of one partition.
        """
        aligned = self._aligned(spark, table, frame)
        if not allow_empty and (aligned.limit(1).isEmpty() if empty is None else empty):
            raise InputError(
                f"table {table.name!r}: refusing to replace {where or 'all rows'} by nothing; "
                "pass --allow-empty if an empty range is meant"
            )
        self.create(spark, table, definition=definition)
        if table.partition_by and gather:
            # as `repartition` by these columns, but what is large for one task is split among several
            aligned = aligned.hint("rebalance", *table.partition_by)
        _commit(table.name, lambda: self._overwrite(table.name, aligned, where, metadata))
        version = self.version(spark, table.name)
        assert version is not None  # just written; for the type checker
        return version

    def _overwrite(
        self, name: str, frame: DataFrame, where: str | None, metadata: Mapping[str, object] | None
    ) -> None:
        writer = frame.write.format("delta").mode("overwrite")
        if where is not None:
            writer = writer.option("replaceWhere", where)
        if metadata:
            writer = writer.option("userMetadata", json.dumps(metadata, sort_keys=True, default=str))
        writer.save(self.path(name))

    def _aligned(self, spark: SparkSession, table: Table, frame: DataFrame) -> DataFrame:
        have = set(frame.columns)
        missing = [name for name in table.names if name not in have]
        extra = sorted(have - set(table.names))
        if missing or extra:
            raise InputError(
                f"table {table.name!r}: frame lacks {missing or 'nothing'}, has unknown {extra or 'nothing'}; "
                f"the contract's columns are {', '.join(table.names)}"
            )
        schema = _schema(spark, table)
        return frame.select([F.col(f"`{f.name}`").cast(f.dataType).alias(f.name) for f in schema.fields])

    def files(self, spark: SparkSession, name: str, *, version: int | None, where: str) -> list[str]:
        """Absolute Parquet paths that hold the rows of `where` at a pinned version (None: the newest), sorted.

        `where` may name partition columns only. EnvironmentTrouble (exit 5) if the pin is gone (fault 27).
        """
        named = "newest version" if version is None else f"version {version}"
        try:
            frame = self.read(spark, name, version=version).where(where)
            urls = frame.inputFiles()
        except (GuardError, EnvironmentTrouble):
            raise
        except Exception as trouble:
            raise EnvironmentTrouble(
                f"table {name!r} {named} cannot be read ({type(trouble).__name__}); it was vacuumed "
                "or its log is damaged: rerun the step that writes it"
            ) from trouble
        paths = sorted(local_path(url) for url in urls)
        gone = [path for path in paths if not Path(path).exists()]
        if gone:
            raise EnvironmentTrouble(
                f"table {name!r} {named} is gone: {len(gone)} of {len(paths)} files were vacuumed; "
                "rerun the step that writes it"
            )
        return paths

    def content_hash(self, spark: SparkSession, table: Table, *, where: str = "true") -> str:
        """Order-independent hash of the rows without run ids and clock columns (docs: interface 6)."""
        return content_hash(self.read(spark, table.name).where(where), table)


def _schema(spark: SparkSession, table: Table) -> StructType:
    return cast(StructType, StructType.fromDDL(table.ddl()))


def _commit(name: str, action: Callable[[], object]) -> None:
    with trouble_is_said(name):
        _retry(action)


def _retry(action: Callable[[], object]) -> None:
    """Run a commit, again with jitter where another writer came in between (fault 6)."""
    for attempt in range(_TRIES):
        try:
            action()
            return
        except Exception as trouble:
            # Delta's own errors carry the name, raw Java ones the text, a Connect server's DELTA_CONCURRENT_APPEND
            said = f"{type(trouble).__name__} {trouble}".replace("_", "").lower()
            if attempt == _TRIES - 1 or not any(name.lower() in said for name in _CONFLICTS):
                raise
            time.sleep(0.2 * 2**attempt * (1 + random.random()))


@contextlib.contextmanager
def trouble_is_said(name: str) -> Iterator[None]:
    """Say what a write can meet, at any depth of an error, in our words.

    A full disk (docs/faults.md 29) is an EnvironmentTrouble, a row that breaks a check of the table
    (docs/faults.md 17) a GuardError; the table is unchanged by either.
    """
    try:
        yield
    except Exception as trouble:
        text = str(trouble)
        if any(said in text for said in DISK_FULL):
            raise EnvironmentTrouble(
                f"disk full while writing table {name!r}; the table is unchanged: free space and run again"
            ) from trouble
        broken = _CHECK.search(text)
        if broken and "REPLACE_WHERE" not in text:  # the range of a write is a check of its own
            raise GuardError(
                f"table {name!r}: a row breaks the check {' '.join(broken[1].split())}; nothing was written: report "
                "this with the run's log, such a row should have been quarantined"
            ) from trouble
        raise
