"""Credentials taken out of a text that people or logs will see: in addresses, in query strings, in headers."""

from __future__ import annotations

import re
from collections.abc import Iterable

HIDDEN = "[hidden]"
_WORDS = r"(?:\w*(?:token|password|passwd|pwd|secret|signature|credential|api_?key)\w*|sig)"
_PATTERNS = (
    # scheme://user:password@; a password may hold any sign but blanks and quotes
    (re.compile(r"(://)[^\s/@:'\"\\]*:(?!\d+/)[^\s'\"\\]*@"), rf"\1{HIDDEN}@"),
    (
        re.compile(r"(\bhttps?://)[^\s/@'\"\\]+@"),
        rf"\1{HIDDEN}@",
    ),  # elsewhere a container: abfss://logs@account
    (re.compile(rf"(?i)([?&;]{_WORDS}=)[^&;\s'\"\\]+"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)(authorization\W{1,4}(?:basic|bearer)\s+)[^\s'\"\\]+"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)(\bbearer\s+)[\w.~+/=-]{8,}"), rf"\1{HIDDEN}"),
)


def without_secrets(text: str, values: Iterable[str] = ()) -> str:
    """The text with HIDDEN in place of credentials in addresses and headers, and of every one of `values`.

    >>> without_secrets("store http://ann:pw@host:5000/api is down")
    'store http://[hidden]@host:5000/api is down'
    """
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return text


def harmless(trouble: BaseException) -> BaseException | None:
    """The error as the cause of another one; None where it, or what led to it, holds credentials a trace would print."""
    seen: list[BaseException] = []
    link: BaseException | None = trouble
    while link is not None and link not in seen:
        if without_secrets(str(link)) != str(link):
            return None
        seen.append(link)
        link = link.__cause__ or link.__context__
    return trouble
