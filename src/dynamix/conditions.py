"""The SQL condition that a config may name (`prediction_rows`): columns, values and plain functions, nothing that acts.

A `dynamix.yaml` lies beside the events, so it may come with data from elsewhere. Spark's conditions can read any file
through a subquery and call any static method of Java by `reflect`; this lets neither through.
"""

from __future__ import annotations

import re

FUNCTIONS = frozenset({
    "abs", "ceil", "coalesce", "contains", "date", "dayofmonth", "dayofweek", "element_at", "endswith", "floor",
    "greatest", "hour", "if", "ifnull", "isnan", "isnotnull", "isnull", "least", "length", "lower", "mod", "month",
    "nullif", "nvl", "pmod", "round", "startswith", "substring", "to_date", "trim", "try_element_at", "unix_micros",
    "upper", "weekday", "year",
})  # fmt: skip
"""What a condition may call."""
_BEFORE_PARENTHESIS = frozenset({
    "all", "and", "any", "between", "by", "case", "cast", "decimal", "div", "else", "escape", "ilike", "in", "is", "like",
    "not", "or", "rlike", "some", "then", "try_cast", "when",
})  # fmt: skip
_QUERIES = frozenset({"from", "map", "reduce", "select", "table", "transform", "values", "with"})
_TOKEN = re.compile(
    r"""(?P<space>\s+)
    | (?P<text>'[^'\\]*' | "[^"\\]*")
    | (?P<name>`[^`]+`)
    | (?P<number>\d[\w.]*)
    | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<comment>--|/\*)
    | (?P<sign>[-+*/%=<>!&|^~(),.\[\]])""",
    re.VERBOSE,
)


def condition_trouble(text: str) -> str:
    """What makes the text more than a condition on the columns of a row, empty where nothing does.

    A condition is made of column names, numbers, quoted text without backslashes, signs, keywords, and calls of
    FUNCTIONS. Whether its columns exist and its types fit is for Spark to say.

    >>> condition_trouble("surface = 'search' AND position < 3")
    ''
    >>> condition_trouble("reflect('java.lang.System', 'exit', 0) = 1")
    "function 'reflect' is not allowed"
    """
    if "${" in text:
        return "'${', in whose place Spark puts variables, is not allowed"
    at, before, depth = 0, "", 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            return f"character {text[at]!r} is not allowed"
        kind, token, at = str(found.lastgroup), found[0], found.end()
        if kind == "comment":
            return f"a comment ({token}) is not allowed"
        if kind == "word" and token.lower() in _QUERIES:
            return f"a query ({token}) is not allowed; a column of that name stands in backticks"
        if kind == "text" and re.fullmatch(r"\w", text[found.start() - 1 : found.start()]):
            return "text must not follow a letter"  # r'...' is read by other rules
        if kind == "sign" and token == "(":
            trouble = _call_trouble(before)
            if trouble:
                return trouble
        depth += {"(": 1, ")": -1}.get(token, 0)
        if depth < 0:
            break
        if kind != "space":
            before = before + token if token == "." or before.endswith(".") else token
    return "parentheses do not match" if depth else ""


def _call_trouble(before: str) -> str:
    """What is wrong with a parenthesis after this token: it may call a function."""
    called = re.match(r"[A-Za-z_`]", before) is not None
    known = before.lower() in FUNCTIONS | _BEFORE_PARENTHESIS
    return f"function {before!r} is not allowed" if called and not known else ""
