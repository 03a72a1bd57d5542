"""Every error a user can meet: what, value, allowed, next step, and the exit code that goes with it.

Each class carries the exit code of the command line. Instances hold plain strings only, so they
survive pickling between Python workers and the driver.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from dynamix.redaction import without_secrets


class DynamixError(Exception):
    """Base of all errors that are reported in one or two lines instead of a trace; addresses lose their credentials."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        self.message = without_secrets(message)
        super().__init__(self.message)


class ConfigError(DynamixError):
    """Usage or config: unknown key, bad option, a version or date that does not exist (exit 2)."""

    exit_code = 2

    @classmethod
    def unknown_key(cls, key: str, allowed: Iterable[str]) -> ConfigError:
        return cls(f"unknown config key {key!r}; allowed here: {', '.join(sorted(allowed))}")

    @classmethod
    def bad_value(cls, key: str, value: object, allowed: str) -> ConfigError:
        return cls(f"config key {key!r} has value {value!r}; allowed: {allowed}")

    @classmethod
    def other_definition(cls, table: str, stored: str, wanted: str) -> ConfigError:
        return cls(
            f"table {table!r} was written by definition {stored}, this config is {wanted}; "
            "use another --warehouse, restore the old config, or pass --rebuild to write it anew"
        )

    @classmethod
    def other_contract(cls, table: str, path: str) -> ConfigError:
        return cls(
            f"table {table!r} was made by a version of DynamiX with other columns or another key; use another "
            f"--warehouse, or remove {path} (its rows are lost) and run the step that writes it"
        )

    @classmethod
    def unknown_version(cls, what: str, value: str, known: Sequence[str]) -> ConfigError:
        listed = ", ".join(known) if known else "none yet"
        return cls(f"{what} {value!r} does not exist; known: {listed}")

    @classmethod
    def unknown_name(cls, what: str, name: str, known: Sequence[str]) -> ConfigError:
        near = difflib.get_close_matches(name, known, n=5, cutoff=0.3) or list(known[:5])
        more = f" ({len(known)} in all)" if len(known) > len(near) else ""
        return cls(
            f"{what} {name!r} does not exist; nearest: {', '.join(near) or 'there are none yet'}{more}"
        )


class InputError(DynamixError):
    """The source cannot be read as events: empty, wrong columns, too much quarantined (exit 3)."""

    exit_code = 3

    @classmethod
    def empty(cls, source: str) -> InputError:
        return cls(f"{source}: no rows; check the path, or pass --allow-empty if that is meant")

    @classmethod
    def contract(cls, source: str, violations: Sequence[str]) -> InputError:
        return cls(f"{source}: {'; '.join(violations)}; map your names under `columns:` in dynamix.yaml")

    @classmethod
    def too_much_quarantined(cls, source: str, share: float, limit: float, reasons: str) -> InputError:
        return cls(
            f"{source}: {share:.1%} of the rows are unusable ({reasons}), the limit is {limit:.0%}; "
            "nothing was written; see the reasons and mend the source or the time unit"
        )


class GuardError(DynamixError):
    """A guard refused to write what a later step needs, or a check said no (exit 4)."""

    exit_code = 4


class EnvironmentTrouble(DynamixError):
    """Java, jars, disk, tracking server, GPU or a vacuumed pin (exit 5)."""

    exit_code = 5
