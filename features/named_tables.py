"""Tables of a metastore by their names, `catalog.schema.table`, in place of folders below a root.

Everything is asked of the metastore and of Delta in SQL, nothing is read from a log as a file: where a catalog keeps
its tables in a store that this process cannot open, as Unity Catalog does, names are the only way. Only `_dynamix`
stays a folder: below the schema's own location where that is one of this machine, else in the volume
`/Volumes/<catalog>/<schema>/dynamix`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from dynamix.errors import ConfigError, EnvironmentTrouble
from dynamix.features.sql_text import dotted, sound_root
from dynamix.features.table_files import is_local, local_path
from dynamix.features.tables import MAINTENANCE, Warehouse

VOLUMES = Path("/Volumes")
"""Where Databricks shows the volumes of Unity Catalog as folders."""
VOLUME = "dynamix"


def open_schema(spark: SparkSession, name: str, *, volumes: Path = VOLUMES) -> Schema:
    """The warehouse `catalog.schema`. ConfigError (exit 2) where the metastore has no such schema.

    EnvironmentTrouble (exit 5) where there is no folder for `_dynamix`: neither the schema's location nor a volume.
    """
    parts = name.split(".")
    try:
        told = spark.sql(f"DESCRIBE SCHEMA EXTENDED {dotted(*parts)}").collect()
    except AnalysisException as trouble:
        first = (str(trouble).splitlines() or [""])[0]
        raise ConfigError(
            f"--warehouse {name}: no such schema in this session's metastore ({first[:120]}); allowed: a schema that is "
            "there (`CREATE SCHEMA` makes one), or a folder, written with a slash"
        ) from None
    location = next((str(row[1]) for row in told if str(row[0]).lower() in ("location", "rootlocation")), "")
    volume = volumes.joinpath(*parts, VOLUME)
    folder = Path(local_path(location)) if is_local(location) else volume
    if not folder.is_dir() and folder == volume:
        raise EnvironmentTrouble(
            f"--warehouse {name}: its tables lie at {location or 'a place it does not tell'}, and there is no folder for "
            f"logs and models; make the volume {name}.{VOLUME}, or use a schema with a location on this machine"
        )
    return Schema(folder, name, spark)


@dataclass(frozen=True, init=False)
class Schema(Warehouse):
    """The tables of `catalog.schema`; `root` is the folder of `_dynamix` alone."""

    name: str
    spark: SparkSession

    def __init__(self, root: Path, name: str, spark: SparkSession) -> None:
        object.__setattr__(self, "root", sound_root(root.absolute()))
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "spark", spark)

    def __str__(self) -> str:
        return self.name

    def sql(self, name: str) -> str:
        return dotted(*self.name.split("."), name)

    def folders(self) -> list[Path]:
        return sorted(self.folder(name) for name in self._tables())

    def folder(self, name: str) -> Path:
        detail = self.spark.sql(f"DESCRIBE DETAIL {self.sql(name)}").select("location").collect()
        location = str(detail[0]["location"])
        if not is_local(location):
            raise EnvironmentTrouble(
                f"table {self.name}.{name} lies at {location}, whose files this process cannot open one by one; run "
                "this verb where the tables are folders (docs/deploy.md)"
            )
        return Path(local_path(location))

    def has_tables(self) -> bool:
        return bool(self._tables())

    def _tables(self) -> list[str]:
        schema = dotted(*self.name.split("."))
        rows = (
            self.spark.sql(f"SHOW TABLES IN {schema}")
            .where(~F.col("isTemporary"))
            .select("tableName")
            .collect()
        )
        return [str(row[0]) for row in rows]

    def exists(self, spark: SparkSession, name: str) -> bool:
        return spark.catalog.tableExists(self.sql(name))

    def version(self, spark: SparkSession, name: str) -> int | None:
        return int(self._history(name)[0]["version"]) if self.exists(spark, name) else None

    def data_version(self, spark: SparkSession, name: str) -> int:
        rows = self._history(name)
        return next((int(r["version"]) for r in rows if r["operation"] not in MAINTENANCE), 0)

    def note(self, name: str, key: str) -> dict[str, Any] | None:
        if not self.exists(self.spark, name):
            return None
        for row in self._history(name):
            found = json.loads(row["userMetadata"]) if row["userMetadata"] else {}
            if key in found:
                return cast("dict[str, Any]", found)
        return None

    def changed_partitions(self, name: str, column: str, *, since: int) -> set[str] | None:
        """Nothing where no commit came since; else None, as SQL does not tell which files a commit replaced."""
        return set() if int(self._history(name)[0]["version"]) == since else None

    def _history(self, name: str) -> list[Row]:
        """Commits that the log still holds, newest first."""
        history = self.spark.sql(f"DESCRIBE HISTORY {self.sql(name)}")
        return history.select("version", "operation", "userMetadata").orderBy(F.desc("version")).collect()

    def _properties(self, spark: SparkSession, name: str) -> dict[str, str]:
        return {
            str(r["key"]): str(r["value"])
            for r in spark.sql(f"SHOW TBLPROPERTIES {self.sql(name)}").collect()
        }

    def _rows(self, spark: SparkSession, name: str, version: int | None) -> DataFrame:
        pin = "" if version is None else f" VERSION AS OF {int(version)}"
        return spark.sql(f"SELECT * FROM {self.sql(name)}{pin}")

    def _overwrite(
        self, name: str, frame: DataFrame, where: str | None, metadata: Mapping[str, object] | None
    ) -> None:
        writer = frame.writeTo(self.sql(name))
        if metadata:
            writer = writer.option("userMetadata", json.dumps(metadata, sort_keys=True, default=str))
        writer.overwrite(F.lit(True) if where is None else F.expr(where))

    def drop(self, name: str) -> None:
        self.spark.sql(f"DROP TABLE IF EXISTS {self.sql(name)}")
