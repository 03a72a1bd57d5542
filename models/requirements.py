"""What a registered model needs where it serves: installed packages, and the code that MLflow copies."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from importlib import metadata
from importlib.resources import files
from pathlib import Path

_REQUIREMENTS = ("torch", "numpy", "pandas", "pyarrow", "mlflow")


def requirements() -> list[str]:
    """Pinned requirements of a registered model, this distribution included; nothing is inferred."""
    pins = [f"{name}=={metadata.version(name).split('+')[0]}" for name in _REQUIREMENTS]
    with contextlib.suppress(metadata.PackageNotFoundError):
        pins.append(f"dynamix-ebf=={metadata.version('dynamix-ebf')}")
    return pins


@contextlib.contextmanager
def model_code(name: str) -> Iterator[str]:
    """A module of this folder as a file for MLflow to copy, for as long as the block lasts: the package may be a zip."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, name)
        place.write_bytes((files("dynamix.models") / name).read_bytes())
        yield str(place)
