"""DynamiX: event based features, user segments and keep/boost masks for ads rankers."""

from __future__ import annotations

__version__ = "0.1.0"
