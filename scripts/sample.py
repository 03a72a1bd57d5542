"""Copy what the documentation shows of a finished demo: the report, its receipt, and one drawing of each kind.

python scripts/sample.py demo --out docs/sample
"""

import argparse
import re
import shutil
from pathlib import Path

DRAWINGS = {
    "verdicts.svg": "verdicts.svg",
    "equivalence-1.svg": "equivalence.svg",
    "dwell-0.svg": "dwell.svg",
    "arms.svg": "arms.svg",
    "ne-over-tokens.svg": "ne-over-tokens.svg",
}
"""Figure of the run -> its name in the sample."""
STORY = ("timeline.svg", "waterfall.svg")
PLACE = re.compile(r"(?<![\w.])/(?:home|root|tmp|Users|mnt|work)/\S*")


def page_of(demo: Path) -> Path:
    """The report of the demo's full world. SystemExit where the demo has not been run."""
    page = demo / "full" / "warehouse" / "_dynamix" / "report.html"
    if not page.is_file():
        raise SystemExit(f"{page} is not there; run `make demo` first")
    return page


def story_drawings(page: str, style: str) -> list[str]:
    """The drawings of one user's story as files of their own; a world that is simulated may show one."""
    part = page[page.index("<h2>One user's story</h2>") :]
    drawn = re.findall(r'<svg class="chart".*?</svg>', part[: part.index("<h2>", 10)], flags=re.S)
    opened = '<svg xmlns="http://www.w3.org/2000/svg" style="background: var(--page)" width="720" '
    return [d.replace("<svg ", opened, 1).replace(">", f"><style>{style}</style>", 1) + "\n" for d in drawn]


def main(demo: Path, out: Path) -> None:
    """Write the sample. SystemExit where a file of it names a place on this machine."""
    page = page_of(demo)
    text = page.read_text(encoding="utf-8")
    run = max((page.parent / "runs").glob("*/figures"), key=lambda folder: folder.stat().st_mtime)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / "report.html").write_text(text, encoding="utf-8")
    (out / "receipt.txt").write_text((run / "receipt.txt").read_text(encoding="utf-8"), encoding="utf-8")
    for source, target in DRAWINGS.items():
        shutil.copyfile(run / source, out / target)
    style = re.findall(r"<style>(.*?)</style>", text, flags=re.S)[0]
    for name, drawn in zip(STORY, story_drawings(text, style), strict=True):
        (out / name).write_text(drawn, encoding="utf-8")
    for path in sorted(out.iterdir()):
        found = PLACE.search(path.read_text(encoding="utf-8"))
        if found:
            raise SystemExit(f"{path.name} names {found.group()}, a place on this machine")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    main(options.demo, options.out)
