"""The claims of the README, measured: `python -m benchmarks [worlds] [--presets S0,S8] [--users 20000]`.

`python -m benchmarks summary --folder W` prints what a warehouse shows after a cycle.
`python -m benchmarks kernels [--rounds 9]` times jagged attention against dense and padded attention.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks import kernels, summary, worlds


def main() -> int:
    """Run the named measurement; results go to standard output, progress to standard error."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", nargs="?", default="worlds", choices=("worlds", "summary", "kernels"))
    parser.add_argument("--presets", default="S0,S8")
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--folder", type=Path, help="where worlds are kept between runs (default: temporary)")
    parser.add_argument("--rounds", type=int, default=9, help="of each cell of the kernels")
    options = parser.parse_args()
    if options.what == "kernels":
        kernels.main(options.rounds)
        return 0
    if options.what == "summary":
        if options.folder is None:
            parser.error("summary needs --folder W, a warehouse that `dynamix run` has written")
        summary.main(options.folder)
        return 0
    presets, seeds = options.presets.split(","), [int(s) for s in options.seeds.split(",")]
    if options.folder is not None:
        worlds.main(presets, options.folder, options.users, seeds)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        worlds.main(presets, Path(folder), options.users, seeds)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
