"""Servers that stand in for others that are out of order."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

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
