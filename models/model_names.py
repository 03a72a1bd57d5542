"""Names of registered models: ours alone, or below `catalog.schema` where a registry wants three parts.

Everything outside this package's MLflow calls says `dynamix-ranker`; what the registry is asked is settled here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from dynamix.errors import ConfigError

STATED_SCHEMA = "DYNAMIX_MODEL_SCHEMA"
UNITY = "databricks-uc"
"""MLflow's address of the registry of Unity Catalog."""
_SCHEMA = re.compile(r"[\w-]+\.[\w-]+")


def stated_schema(environment: Mapping[str, str]) -> str:
    """`catalog.schema` of DYNAMIX_MODEL_SCHEMA, empty where it is not set. ConfigError (exit 2) for another form."""
    text = environment.get(STATED_SCHEMA, "")
    if text and not _SCHEMA.fullmatch(text):
        raise ConfigError.bad_value(STATED_SCHEMA, text, "catalog.schema of letters, digits, _ and -")
    return text


def full_name(schema: str, name: str) -> str:
    """The name as the registry has it.

    >>> full_name("main.ads", "dynamix-ranker"), full_name("", "dynamix-ranker")
    ('main.ads.dynamix-ranker', 'dynamix-ranker')
    >>> full_name("main.ads", "main.ads.dynamix-ranker")
    'main.ads.dynamix-ranker'
    """
    return f"{schema}.{own_name(schema, name)}" if schema else name


def own_name(schema: str, name: str) -> str:
    """The name as this package says it.

    >>> own_name("main.ads", "main.ads.dynamix-ranker")
    'dynamix-ranker'
    """
    return name.removeprefix(f"{schema}.") if schema else name


def registry_uri(tracking_uri: str, schema: str) -> str:
    """Where models are: Unity Catalog for a workspace and three-part names, else beside the runs.

    >>> registry_uri("databricks", "main.ads"), registry_uri("databricks", "")
    ('databricks-uc', 'databricks')
    """
    scheme, _, profile = tracking_uri.partition("://")
    if schema and scheme == "databricks":
        return f"{UNITY}://{profile}" if profile else UNITY
    return tracking_uri


def parse_address(address: str) -> tuple[str, str, str]:
    """(name, version, alias) of a `models:/` address. ConfigError (exit 2) for anything else.

    >>> parse_address("models:/dynamix-ranker@champion")
    ('dynamix-ranker', '', 'champion')
    """
    body = address.removeprefix("models:/")
    # names go into MLflow's filters, so they hold no quote
    found = re.fullmatch(r"([\w. -]+)(?:/([0-9]+)|@([\w.-]+))", body)
    if address != body and found:
        return found[1], found[2] or "", found[3] or ""
    raise ConfigError.bad_value(
        "--model", address, "models:/dynamix-ranker@champion or models:/dynamix-ranker/3"
    )
