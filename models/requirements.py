"""What a registered model needs installed where it serves."""

from __future__ import annotations

import contextlib
from importlib import metadata

_REQUIREMENTS = ("torch", "numpy", "pandas", "pyarrow", "mlflow")


def requirements() -> list[str]:
    """Pinned requirements of a registered model, this distribution included; nothing is inferred."""
    pins = [f"{name}=={metadata.version(name).split('+')[0]}" for name in _REQUIREMENTS]
    with contextlib.suppress(metadata.PackageNotFoundError):
        pins.append(f"dynamix-ebf=={metadata.version('dynamix-ebf')}")
    return pins
