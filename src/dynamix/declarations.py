"""Declared event-based features (EBFs): which events, how many of them, with which information, over which windows.

A stream without an entry under `streams:` is declared by its data: all events of one `surface/event_type`, the
history's length, every attribute, the default windows (docs/method.md A.2.5).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, field_validator

EVENT_ATTRIBUTES = ("item", "category", "dwell", "recency")
"""What a kept event can carry beside the config's own `attributes:`."""
DEFAULT_WINDOWS = (1, 7, 28, 0)
"""Days before the window's end; 0 = all days, the count decayed."""
DEFAULT_HALF_LIFE_DAYS = 7
CONDITION_COLUMNS = ("item_id", "category", "ad_id", "advertiser_id", "campaign_id")
"""Columns of an event that a condition may name, beside the config's own `attributes:`."""
OPEN = "open"
"""Kind of an event whose session had not closed: kinds are known of closed sessions only."""

_DWELL_STATISTICS = ("dwell_sum", "z_sum", "z_sq_sum", "n_dwell", "n_censored")
_NAME = re.compile(r"(?P<surface>.+)/(?P<type>[^/#]+)(?:#(?P<kind>[^/#]+))?", re.DOTALL)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _texts(value: object) -> object:
    """One value or a list of them as a tuple of texts, written as Spark writes them."""
    listed = value if isinstance(value, list | tuple) else [value]
    return tuple(
        str(v).lower() if isinstance(v, bool) else v if isinstance(v, str) else str(v) for v in listed
    )


class StreamWhere(_Part):
    """Event filter: every part that is given has to hold; a list means any of its values."""

    surface: tuple[str, ...] = Field((), description="empty = the surface in the stream's name")
    event_type: tuple[str, ...] = Field((), description="empty = the type in the stream's name")
    attributes: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="attribute -> value or values it must have"
    )

    _lists = field_validator("surface", "event_type", mode="before")(_texts)

    @field_validator("attributes", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return {name: _texts(own) for name, own in value.items()} if isinstance(value, dict) else value


class StreamOptions(_Part):
    """What the config says of one stream; whatever is left out follows the data and the defaults."""

    protected: bool = Field(False, description="never dropped by a mask")
    sensitive: bool = Field(False, description="never input of a segmenter, never named in a report")
    where: StreamWhere | None = Field(
        None, description="event filter; None = the surface and type of the name"
    )
    length: int | None = Field(None, ge=1, description="newest events kept; None = history.per_stream")
    attributes: tuple[str, ...] | None = Field(
        None, description="what a kept event carries; None = everything"
    )
    windows: tuple[int, ...] | None = Field(None, description="days, 0 = decayed; None = 1, 7, 28, 0")
    half_life_days: int | None = Field(
        None, ge=1, description="days in which a decayed count halves; None = 7"
    )

    @field_validator("windows")
    @classmethod
    def _days(cls, windows: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if windows is not None and (not windows or min(windows) < 0):
            raise ValueError("windows are whole days >= 1, or 0 for all days with decay; name at least one")
        return None if windows is None else tuple(sorted(set(windows), key=lambda days: (days == 0, days)))


@dataclass(frozen=True)
class EventFilter:
    """Events of a stream: surface and type among the listed ones and every condition met, or its `own` pair.

    `own` is the (surface, event_type) that the stream's name spells: such events belong to it in any case.
    """

    own: tuple[str, str]
    surfaces: tuple[str, ...]
    event_types: tuple[str, ...]
    conditions: tuple[tuple[str, tuple[str, ...]], ...] = ()
    kind: str | None = None

    @property
    def is_plain(self) -> bool:
        """True where surface and type of the name say all."""
        return not self.conditions and self.pairs == {self.own}

    @property
    def pairs(self) -> set[tuple[str, str]]:
        return set(itertools.product(self.surfaces, self.event_types))

    def text(self) -> str:
        """The filter in one line."""
        parts = [("surface", self.surfaces), ("event_type", self.event_types), *self.conditions]
        parts += [("session kind", (self.kind,))] if self.kind else []
        said = " and ".join(
            f"{name} = {values[0]}" if len(values) == 1 else f"{name} in ({', '.join(values)})"
            for name, values in parts
        )
        return (
            said
            if self.own in self.pairs
            else f"({said}) or surface = {self.own[0]} and event_type = {self.own[1]}"
        )


@dataclass(frozen=True)
class Declaration:
    """One event-based feature, complete: filter × length × attributes × windows, with its flags.

    `declared` is False where all of it is inferred from the data.
    """

    stream: str
    events: EventFilter
    length: int
    attributes: tuple[str, ...]
    windows: tuple[int, ...]
    half_life_days: int
    protected: bool
    sensitive: bool
    declared: bool

    def columns(self) -> tuple[str, ...]:
        """Names of the derived columns, window by window; dwell figures only where events carry a dwell."""
        found = []
        for days in self.windows:
            names = ["n", *(["decayed_n"] if days == 0 else []), "conversions"]
            names += _DWELL_STATISTICS if "dwell" in self.attributes else []
            names += ["last_ts"] if "recency" in self.attributes else []
            found += [column_name(self.stream, n, days, half_life_days=self.half_life_days) for n in names]
        return tuple(found)


def split_stream(name: str) -> tuple[str, str, str | None]:
    """(surface, event_type, kind or None) of `surface/event_type[#kind]`. ValueError for any other form."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"stream {name!r} is no surface/event_type or surface/event_type#kind")
    return match["surface"], match["type"], match["kind"]


def base_stream(name: str) -> str:
    """The stream without its session kind."""
    head, sign, tail = name.rpartition("#")
    return head if sign and "/" in head and "/" not in tail else name


def with_kind(stream: str, kind: str) -> str:
    """`surface/event_type#kind`: the stream of an event whose session is of this kind (`open`: not closed yet)."""
    return f"{stream}#{kind}"


def declare(
    stream: str, options: Mapping[str, StreamOptions], *, per_stream: int, attributes: Iterable[str]
) -> Declaration:
    """The complete declaration of any stream, also of one that only the data name, whatever their characters.

    A stream with a kind takes its own entry where it has one, and what that leaves out from the entry of the
    stream without kind: filter, windows and half-life always come from there.
    """
    base, own = options.get(base_stream(stream), StreamOptions()), options.get(stream, StreamOptions())
    try:
        surface, event_type, kind = split_stream(stream)
    except ValueError:  # surfaces and types of the data may hold anything; names in the config may not
        (surface, _, event_type), kind = stream.rpartition("/"), None
    where = base.where or StreamWhere()
    length = own.length or base.length or per_stream
    carried = own.attributes if own.attributes is not None else base.attributes
    return Declaration(
        stream=stream,
        events=EventFilter(
            own=(surface, event_type),
            surfaces=where.surface or (surface,),
            event_types=where.event_type or (event_type,),
            conditions=tuple(sorted(where.attributes.items())),
            kind=kind,
        ),
        length=length,
        attributes=(*EVENT_ATTRIBUTES, *attributes) if carried is None else carried,
        windows=base.windows or DEFAULT_WINDOWS,
        half_life_days=base.half_life_days or DEFAULT_HALF_LIFE_DAYS,
        protected=own.protected or base.protected,
        sensitive=own.sensitive or base.sensitive,
        declared=stream in options or base_stream(stream) in options,
    )


# ---------------------------------------------------------------- names of derived columns

_SIGNS = {"/": "s", "_": "u", "#": "k", "-": "d", ".": "p", " ": "b", ":": "c"}


def column_name(
    stream: str, statistic: str, window_days: int, *, half_life_days: int = DEFAULT_HALF_LIFE_DAYS
) -> str:
    """`<stream>__<statistic>__<window>` in lower case, one name for one (stream, statistic, window).

    Letters a-z and digits stay, every other character becomes `_` (a capital `_` and its small letter). Where the
    stream is not plainly `surface/type`, one sign a `_` follows that says what stood there, in order: s slash,
    u underscore, k `#`, d dash, p point, b blank, c colon, a capital, x<hex>x anything else. So no two streams
    share a name, not even in an engine that ignores case. Windows are `7d`, or `half7d` for a decayed one.

    >>> column_name("shop/view", "n", 28)
    'shop_view__n__28d'
    >>> column_name("shop/add_to_cart", "decayed_n", 0)
    'shop_add_to_cart_suu__decayed_n__half7d'
    """
    body, signs = [], []
    for c in stream:
        if re.fullmatch("[a-z0-9]", c):
            body.append(c)
        elif re.fullmatch("[A-Z]", c):
            body.append(f"_{c.lower()}")
            signs.append("a")
        else:
            body.append("_")
            signs.append(_SIGNS.get(c, f"x{ord(c):x}x"))
    said = "" if signs == ["s"] else f"_{''.join(signs)}"
    window = f"{window_days}d" if window_days else f"half{half_life_days}d"
    return f"{''.join(body)}{said}__{statistic}__{window}"


# ---------------------------------------------------------------- validation


def violations(
    options: Mapping[str, StreamOptions],
    *,
    conversion_types: Iterable[str],
    attributes: Iterable[str],
    kinds: bool,
) -> list[str]:
    """Everything that is wrong with the declarations together, one sentence each, by stream; [] if they are sound."""
    conversions, known = set(conversion_types), tuple(attributes)
    found: list[str] = []
    named: dict[str, EventFilter] = {}
    for stream, own in sorted(options.items()):
        try:
            _, event_type, kind = split_stream(stream)
        except ValueError as trouble:
            found.append(f"{trouble}; allowed: e.g. shop/view, search/click#buy")
            continue
        found += _attribute_trouble(stream, own, known)
        if kind is not None:
            found += _kind_trouble(stream, own, is_conversion=event_type in conversions, kinds=kinds)
        else:
            named[stream] = declare(stream, options, per_stream=1, attributes=known).events
            found += _filter_trouble(stream, named[stream], conversions)
    for a, b in itertools.combinations(sorted(named), 2):
        shared = _shared_event(named[a], named[b])
        if shared:
            found.append(
                f"streams {a!r} and {b!r} overlap: an event of {shared} would belong to both; make their filters disjoint"
            )
    return found


def _attribute_trouble(stream: str, own: StreamOptions, known: tuple[str, ...]) -> list[str]:
    allowed, conditions = (*EVENT_ATTRIBUTES, *known), (*CONDITION_COLUMNS, *known)
    found = [
        f"stream {stream!r} carries unknown attribute {name!r}; allowed: {', '.join(allowed)}"
        for name in own.attributes or ()
        if name not in allowed
    ]
    for name, values in (own.where.attributes if own.where else {}).items():
        if name not in conditions:
            found.append(
                f"stream {stream!r} has a condition on unknown {name!r}; allowed: {', '.join(conditions)}; name your own "
                "columns under `attributes:`"
            )
        if not values:
            found.append(
                f"stream {stream!r} has no value for {name!r}: no event could meet that; name at least one"
            )
    return found


def _kind_trouble(stream: str, own: StreamOptions, *, is_conversion: bool, kinds: bool) -> list[str]:
    found = []
    if is_conversion:
        found.append(
            f"stream {stream!r} gives a session kind to a conversion type; conversion streams carry none, declare "
            f"{base_stream(stream)!r}"
        )
    if not kinds:
        found.append(
            f"stream {stream!r} has a session kind but session.kinds is off: no event is in it; set it to on"
        )
    given = [name for name in ("where", "windows", "half_life_days") if getattr(own, name) is not None]
    if given:
        found.append(
            f"stream {stream!r} sets {', '.join(given)}, which belong to the stream without kind; declare them on "
            f"{base_stream(stream)!r}"
        )
    return found


def _filter_trouble(stream: str, events: EventFilter, conversions: set[str]) -> list[str]:
    found = []
    if events.conditions and events.own in events.pairs:
        found.append(
            f"stream {stream!r} has conditions, yet events that miss them carry its name too; give it a name of its own, "
            f"e.g. {stream + '.some'!r} with where: {{event_type: {events.own[1]}}}"
        )
    roles = {t in conversions for t in events.event_types} | (
        {True} if events.own[1] in conversions else set()
    )
    if len(roles) > 1:
        found.append(
            f"stream {stream!r} mixes conversion types and others ({', '.join(events.event_types)}); conversions never "
            "feed a segmenter, so declare two streams"
        )
    return found


def _shared_event(a: EventFilter, b: EventFilter) -> str:
    """A `surface/event_type` (with the conditions that both allow) whose events meet both filters; empty if none."""
    for pairs, conditions in _branches(a):
        for others, more in _branches(b):
            apart = any(not set(conditions[n]) & set(more[n]) for n in conditions.keys() & more.keys())
            if pairs & others and not apart:
                return "/".join(min(pairs & others))
    return ""


def _branches(events: EventFilter) -> list[tuple[set[tuple[str, str]], dict[str, tuple[str, ...]]]]:
    return [(events.pairs, dict(events.conditions)), ({events.own}, {})]
