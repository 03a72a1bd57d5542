"""One of the processes that models/launch.py has started: reads the job, trains with the others; the first writes.

Run as `python -m dynamix.models.launched FOLDER` by torchrun, or called by Spark's TorchDistributor.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from pathlib import Path

from dynamix.models.handover import SAID, Job, read_job, write_trained
from dynamix.models.plugins import TrainerPlugin
from dynamix.models.ranks import ProcessRanks
from dynamix.models.stream_dropout import StreamDropout
from dynamix.models.train import pick_device, train_arm

PLUGINS: dict[str, type[TrainerPlugin]] = {StreamDropout.name: StreamDropout}
"""Plugins by name that a training process can build; each takes its options by keyword."""


def main(folder: str) -> None:
    """Every training of the job in `folder`. What goes wrong stands there too, and the process fails."""
    place = Path(folder)
    job = read_job(place)
    rank = -1
    try:
        ranks = ProcessRanks.join(pick_device(job.config.device), timeout_s=job.config.timeout_s)
        rank = ranks.rank
        _train(place, job, ranks)
    except Exception as trouble:
        tree = {
            "rank": rank, "kind": type(trouble).__name__, "said": str(trouble), "trace": traceback.format_exc()
        }  # fmt: skip
        (place / f"trouble-{os.getpid()}.json").write_text(json.dumps(tree), encoding="utf-8")
        raise
    ranks.leave()


def _train(place: Path, job: Job, ranks: ProcessRanks) -> None:
    def say(text: str) -> None:
        with (place / SAID).open("a", encoding="utf-8") as said:
            said.write(text + "\n")

    for number, (spec, options) in enumerate(zip(job.specs, job.plugins, strict=True)):
        trained = train_arm(
            spec, job.rows, model_config=job.model_config, config=job.config, progress=say, start=job.start, ranks=ranks,
            checkpoints=job.checkpoints,
            plugins=[PLUGINS[name](**kinds) for name, kinds in options],
        )  # fmt: skip
        if ranks.first:
            write_trained(place / str(number), trained)


def _end_with_the_parent() -> None:
    """Leave when standard input closes: whoever waits for the result is gone, and torchrun would go on alone."""
    while os.read(0, 1024):  # not sys.stdin: its lock, held here, would break the interpreter's own end
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    main(sys.argv[1])
