"""`dynamix completion SHELL`: a script by which a shell completes verbs, options, their choices and paths."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path

import shtab

SHELLS = tuple(shtab.SUPPORTED_SHELLS)


def script(parser: ArgumentParser, shell: str) -> str:
    """The script for one of SHELLS; options that take a path complete files and folders."""
    for one in _parsers(parser):
        for action in one._actions:  # argparse has no public way to its options
            if action.type is Path or action.dest == "warehouse":  # which may be a name as well
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell))


def _parsers(parser: ArgumentParser) -> Iterator[ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for child in action.choices.values():
                yield from _parsers(child)
