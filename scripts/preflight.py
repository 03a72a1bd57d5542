"""Before anything is installed: is this Python new enough, is there a Java that Spark can start, is there room?

Standard library only; it runs on the caller's Python, before .venv exists.
"""

import os
import re
import shutil
import subprocess
import sys

NEEDED_GB = 9  # installed environment 6.4 GB, its download and the demo's tables on top
DOWNLOAD = "about 3 GB to download and 6.4 GB on disk on Linux (torch with CUDA), less on macOS"


def trouble() -> str:
    """The first thing in the way, in one sentence; empty when set-up can go on."""
    if sys.version_info < (3, 11):  # noqa: UP036 - runs on whatever Python the user has
        return f"Python {sys.version.split()[0]} is too old; install 3.11 or newer, or run make PYTHON=python3.11"
    home = os.environ.get("JAVA_HOME")
    java = os.path.join(home, "bin", "java") if home else shutil.which("java")
    if not java or not os.path.exists(java):
        return "no Java found; install a Java 17 or 21 runtime and set JAVA_HOME or PATH"
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False)
    version = re.search(r'version "(\d+)', said.stderr + said.stdout)
    if version is None or int(version[1]) not in (17, 21):
        return f"Java {version[1] if version else 'of unknown version'} found; Spark needs 17 or 21: set JAVA_HOME"
    free = shutil.disk_usage(".").free / 1e9
    if free < NEEDED_GB:
        return f"{free:.1f} GB free here, {NEEDED_GB} GB needed"
    return ""


if __name__ == "__main__":
    problem = trouble()
    if problem:
        print(f"set-up: {problem}", file=sys.stderr)
        raise SystemExit(5)
    print(f"set-up: a private .venv from the lock, {DOWNLOAD}")
