"""A small client for a headless chromium: DevTools messages over its pipe, nothing but the standard library.

`--remote-debugging-pipe` reads JSON on descriptor 3 and writes it on 4, each message ended by a zero byte.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import struct
import subprocess
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WAIT_S = 20.0


def find_chromium() -> str | None:
    """Path of a chromium on this machine; $CHROMIUM names another one."""
    return next((p for n in (os.environ.get("CHROMIUM", ""), *NAMES) if n and (p := shutil.which(n))), None)


class Page:
    """One tab: `events` holds everything that the browser said of it."""

    def __init__(self, process: subprocess.Popen[bytes], read: int, write: int) -> None:
        self._process, self._read, self._write = process, read, write
        self._number, self._held, self._session = 0, b"", ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to one command. RuntimeError where the browser refuses it or says nothing."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        for told in self._messages():
            if told.get("id") == self._number:
                if "error" in told:
                    raise RuntimeError(f"{method}: {told['error']}")
                return dict(told["result"])
            self.events.append(told)
        raise RuntimeError(f"{method}: no answer in {WAIT_S:.0f} s")

    def show(self, path: Path, *, width: int, height: int, dark: bool) -> None:
        """Load the file at this size and colour scheme and wait until it has."""
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        seen = len(self.events)
        self.call("Page.navigate", url=path.as_uri())
        if self._loaded(self.events[seen:]):
            return
        for told in self._messages():
            self.events.append(told)
            if self._loaded([told]):
                return
        raise RuntimeError(f"{path.name} did not load in {WAIT_S:.0f} s")

    def evaluate(self, script: str) -> Any:
        """Value of a JavaScript expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def screenshot(self, *, whole: bool = False, clip: dict[str, float] | None = None) -> bytes:
        """PNG of the window, of the whole page, or of a rectangle (x, y, width, height)."""
        more: dict[str, Any] = {} if clip is None else {"clip": {**clip, "scale": 1}}
        beyond = whole or clip is not None
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=beyond, **more)
        return base64.b64decode(found["data"])

    def said(self, method: str) -> list[dict[str, Any]]:
        """Parameters of all events of this name."""
        return [told["params"] for told in self.events if told.get("method") == method]

    @staticmethod
    def _loaded(events: list[dict[str, Any]]) -> bool:
        return any(told.get("method") == "Page.loadEventFired" for told in events)

    def _messages(self) -> Iterator[dict[str, Any]]:
        end = time.monotonic() + WAIT_S
        while (left := end - time.monotonic()) > 0:
            while b"\0" in self._held:
                one, _, self._held = self._held.partition(b"\0")
                yield json.loads(one)
            if select.select([self._read], [], [], left)[0]:
                chunk = os.read(self._read, 1 << 20)
                if not chunk:
                    raise RuntimeError(f"chromium ended with {self._process.poll()}")
                self._held += chunk


@contextmanager
def browser(chromium: str, profile: Path) -> Iterator[Page]:
    """A tab of a fresh headless chromium without network services of its own; it ends with the block."""
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    far = [
        fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (to_read, from_write)
    ]  # so that neither is 3 or 4 already
    command = [
        chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--disable-background-networking", "--disable-component-update", "--no-first-run", "--hide-scrollbars",
        f"--user-data-dir={profile}", "--remote-debugging-pipe",
    ]  # fmt: skip
    placed = ["bash", "-c", f'exec "$@" 3<&{far[0]} 4>&{far[1]}', "bash", *command]
    process = subprocess.Popen(
        placed, pass_fds=far, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for fd in (to_read, from_write, *far):
        os.close(fd)
    try:
        yield Page(process, from_read, to_write)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        os.close(to_write)
        os.close(from_read)


def mean_grey(png: bytes) -> float:
    """Mean luma (0 to 255, Rec. 709 weights) of an 8-bit RGB or RGBA PNG without interlacing."""
    width, height, depth, colour = struct.unpack(">IIBB", png[16:26])
    channels = {2: 3, 6: 4}[colour]
    assert depth == 8
    data, at = b"", 8
    while at < len(png):
        size, kind = struct.unpack(">I4s", png[at : at + 8])
        data += png[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
        at += size + 12
    raw, stride = zlib.decompress(data), width * channels
    before, total = bytearray(stride), 0.0
    for row in range(height):
        start = row * (stride + 1)
        before = _unfiltered(raw[start], bytearray(raw[start + 1 : start + 1 + stride]), before, channels)
        red, green, blue = (sum(before[c::channels]) for c in range(3))
        total += 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return total / (width * height)


def _unfiltered(kind: int, line: bytearray, above: bytearray, channels: int) -> bytearray:
    """One line of a PNG with its filter undone (PNG specification, 9.2)."""
    for i in range(len(line)):
        left = line[i - channels] if i >= channels else 0
        up, corner = above[i], above[i - channels] if i >= channels else 0
        if kind == 4:
            estimate = left + up - corner
            near = min((left, up, corner), key=lambda v: abs(estimate - v))
        else:
            near = (0, left, up, (left + up) // 2)[kind]
        line[i] = (line[i] + near) & 255
    return line
