"""Tracking servers of a test's own: a real one, and one that is out of order."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

START_S = 120.0
Answer = Callable[[str], tuple[int, dict[str, str]]]
"""Path of a request -> status and JSON body."""


def out_of_order(message: str = "out of order") -> Answer:
    """Every request ends in an internal error that says `message`."""
    return lambda _: (500, {"error_code": "INTERNAL_ERROR", "message": message})


@contextlib.contextmanager
def failing_store(answer: Answer) -> Iterator[int]:
    """A tracking server on 127.0.0.1 that answers as `answer` says; its port."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            status, said = answer(self.path.partition("?")[0])
            body = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PATCH = _answer

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def tracking_server(folder: Path) -> Iterator[str]:
    """A real `mlflow server` with its store and artefacts in the folder; its address."""
    folder.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder / 'store.db'}", "--artifacts-destination", str(folder / "artefacts"),
    ]  # fmt: skip
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            _until_healthy(f"http://127.0.0.1:{port}", process, folder / "server.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def _until_healthy(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
            return
        time.sleep(0.3)
    raise AssertionError(f"mlflow server did not start in {START_S:.0f} s: {log.read_text()[-2000:]}")
