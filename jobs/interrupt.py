"""Ctrl-C as a command takes it: KeyboardInterrupt, one sentence, no trace.

Spark's own handler asks the JVM to cancel its jobs first, over the connection that the interrupted call is reading from;
that call then fails, and py4j prints both traces. A command ends anyway, and its JVM with it.
"""

from __future__ import annotations

import logging
import signal
import threading

_OF_PY4J = ("KeyboardInterrupt while sending command", "Exception while sending command")


def plain_interrupts() -> None:
    """Put Python's own handler in place of Spark's, and drop what py4j logs of the call that was cut off.

    To be called once a session is there, as Spark sets its handler then; nothing happens outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.getLogger().addFilter(_not_of_py4j)


def _not_of_py4j(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_OF_PY4J)
