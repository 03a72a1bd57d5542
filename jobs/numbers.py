"""Numbers as people read them."""

from __future__ import annotations


def pct(fraction: float) -> str:
    """A fraction in per cent with two significant digits, at most two decimals where it is large.

    >>> pct(0.2346), pct(0.001), pct(1.0)
    ('23 %', '0.1 %', '100 %')
    """
    value = 100 * fraction
    return f"{value:.0f} %" if abs(value) >= 10 else f"{value:.2g} %"


def change(new: float, old: float) -> str:
    """Relative change in per cent with its sign."""
    return f"{100 * (new / old - 1):+.1f} %"
