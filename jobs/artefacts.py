"""The report's figures as files of their own, and as artefacts of the training run behind the registered model.

One user's story stays out: a registry is read by more people than a page, and `forget` does not reach a remote one.
"""

from __future__ import annotations

import shutil
from functools import cache
from html import escape
from importlib.resources import files

from dynamix.errors import DynamixError
from dynamix.jobs import heatmap, heatmap_chart, page_figures, svg
from dynamix.jobs.context import Run
from dynamix.jobs.receipt import receipt
from dynamix.jobs.report_data import ReportData
from dynamix.models.registered import log_figures

FOLDER = "figures"


def figure_files(data: ReportData) -> dict[str, str]:
    """File name -> content: the receipt as text, the heat map as HTML and as SVG, every drawing of the page as SVG."""
    found = {"receipt.txt": "\n".join(receipt(data)) + "\n"}
    if data.cells:
        found["verdicts.html"] = _html(
            heatmap.html(data.cells, truth=data.truth), f"Verdicts of {data.mask_version}"
        )
    drawn = {f"equivalence-{i}": f for i, f in enumerate(page_figures.forests(data))}
    drawn |= {f"dwell-{i}": f for i, f in enumerate(page_figures.curves(data))}
    for name, one in (
        ("arms", page_figures.arm_figure(data)),
        ("ne-over-tokens", page_figures.ne_over_tokens(data)),
        ("drift", page_figures.drift_figure(data)),
        ("watch", page_figures.watch_figure(data)),
    ):
        if one is not None:
            drawn[name] = one
    files = {name: str(f.svg) for name, f in drawn.items()}
    if data.cells:
        title = f"Verdicts of {data.mask_version}"
        files["verdicts"] = heatmap_chart.picture(data.cells, truth=data.truth, title=title)
    return found | {
        f"{name}.svg": svg.standalone(drawing, style=style_sheet()) for name, drawing in files.items()
    }


def log_report_figures(run: Run, data: ReportData) -> list[str]:
    """Write the figures into the run's folder and log them to the run of the evidence's model; a warning if that failed.

    Without a registered model there is nowhere to log to, and no warning.
    """
    folder = run.folder / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, text in figure_files(data).items():
        (folder / name).write_text(text, encoding="utf-8")
    address = data.evidence.address if data.evidence is not None else ""
    if not address:
        return []
    try:
        log_figures(run.registry(), address, folder)
    except DynamixError as trouble:  # the page is written: a store that is down does not take it back
        return [f"figures are not logged to {address}: {trouble.message}"]
    return []


@cache
def style_sheet() -> str:
    """The report's style sheet."""
    return (files("dynamix.jobs") / "templates" / "style.css.j2").read_text(encoding="utf-8")


def _html(body: str, title: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{style_sheet()}</style></head><body><main>{body}</main></body></html>\n"
    )
