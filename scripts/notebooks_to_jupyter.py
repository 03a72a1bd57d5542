"""Write notebooks in Databricks source form as .ipynb files that Jupyter opens; standard library only.

python scripts/notebooks_to_jupyter.py notebooks/*.py --out demo/jupyter
"""

import argparse
import json
from pathlib import Path

HEADER = "# Databricks notebook source\n"
BORDER = "\n# COMMAND ----------\n"
MAGIC = "# MAGIC"


def cells(source: str) -> list[tuple[str, str]]:
    """(`markdown` or `code`, text) of every cell. ValueError for a file that is no notebook or has another magic."""
    if not source.startswith(HEADER):
        raise ValueError(f"no Databricks notebook: the first line is not {HEADER.strip()!r}")
    found = []
    for text in source.removeprefix(HEADER).split(BORDER):
        text = text.strip("\n")
        if not text.startswith(MAGIC):
            found.append(("code", text))
            continue
        lines = [line.removeprefix(MAGIC).removeprefix(" ") for line in text.splitlines()]
        if lines[0].strip() != "%md" or not all(line.startswith(MAGIC) for line in text.splitlines()):
            raise ValueError(f"only whole %md cells can be written for Jupyter, not {text[:60]!r}")
        found.append(("markdown", "\n".join(lines[1:])))
    return found


def as_jupyter(source: str) -> dict[str, object]:
    """The notebook as a tree of nbformat 4.5, without outputs."""
    listed = []
    for place, (kind, text) in enumerate(cells(source)):
        cell = {
            "cell_type": kind,
            "id": f"cell-{place}",
            "metadata": {},
            "source": text.splitlines(keepends=True),
        }
        listed.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": listed, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def main() -> None:
    """Read the command line, write one file a page, say where."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("demo/jupyter"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for page in arguments.pages:
        target = arguments.out / page.with_suffix(".ipynb").name
        target.write_text(
            json.dumps(as_jupyter(page.read_text(encoding="utf-8")), indent=1), encoding="utf-8"
        )
        print(target)


if __name__ == "__main__":
    main()
