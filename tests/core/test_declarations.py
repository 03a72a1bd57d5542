"""Declared streams: defaults, inheritance by kinds, one event one stream, names that never clash, complete errors."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamix.config import Config, load_config
from dynamix.declarations import (
    DEFAULT_WINDOWS,
    EVENT_ATTRIBUTES,
    StreamOptions,
    StreamWhere,
    base_stream,
    column_name,
    split_stream,
    violations,
)
from dynamix.errors import ConfigError


def trouble(text: str, *settings: str) -> list[str]:
    """Sentences of the error that a config under these lines of YAML ends with; [] if it is sound."""
    try:
        load_config(settings=[f"streams={text}", *settings])
    except ConfigError as error:
        assert error.exit_code == 2
        return re.split(r"; (?=stream|unknown|config)", error.message)
    return []


def test_a_stream_without_an_entry_is_declared_by_its_data() -> None:
    config = load_config(settings=["history.per_stream=9", "attributes=[plan]"])
    found = config.declaration("shop/view")
    assert (found.length, found.windows, found.half_life_days) == (9, DEFAULT_WINDOWS, 7)
    assert found.attributes == (*EVENT_ATTRIBUTES, "plan")
    assert found.events.text() == "surface = shop and event_type = view"
    assert not (found.declared or found.protected or found.sensitive)


def test_python_and_yaml_declare_the_same(tmp_path: Path) -> None:
    page = tmp_path / "dynamix.yaml"
    page.write_text(
        "attributes: [plan]\n"
        "streams:\n"
        "  shop/view: {protected: true, length: 3, attributes: [item, plan], windows: [0, 14, 1, 14]}\n"
        "  feed/engaged:\n"
        "    where: {event_type: [like, share], attributes: {plan: [gold, 3]}}\n"
        "    half_life_days: 2\n"
    )
    declared = Config(
        attributes=("plan",),
        streams={
            "shop/view": StreamOptions(
                protected=True, length=3, attributes=("item", "plan"), windows=(1, 14, 0)
            ),
            "feed/engaged": StreamOptions(
                where=StreamWhere(event_type=("like", "share"), attributes={"plan": ("gold", "3")}),
                half_life_days=2,
            ),
        },
    )
    assert load_config(files=[page]) == declared
    said = declared.declaration("feed/engaged").events.text()
    assert said.startswith(
        "(surface = feed and event_type in (like, share) and plan in (gold, 3)) or surface = feed"
    )


def test_the_flags_of_today_still_do() -> None:
    config = load_config(settings=["streams={feed/view: {protected: true}, feed/open: {sensitive: true}}"])
    assert config.declaration("feed/view").protected and not config.declaration("feed/view").sensitive
    assert config.declaration("feed/open").sensitive and not config.declaration("feed/open").protected


def test_a_kind_has_its_own_length_and_attributes_and_the_rest_of_the_plain_stream() -> None:
    text = "{shop/view: {length: 5, attributes: [item], windows: [3], protected: true}, shop/view#buy: {length: 8}}"
    config = load_config(settings=[f"streams={text}", "session.kinds=on"])
    plain, buy, opened = (config.declaration(f"shop/view{kind}") for kind in ("", "#buy", "#open"))
    assert (plain.length, buy.length, opened.length) == (5, 8, 5)
    assert plain.attributes == buy.attributes == opened.attributes == ("item",)
    assert buy.windows == (3,) and buy.protected
    assert (buy.events.kind, opened.events.kind, plain.events.kind) == ("buy", "open", None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{shop/view: {lenght: 3}}", "unknown config key 'streams.shop/view.lenght'; allowed here: .*length"),
        ("{shop: {}}", "'shop' is no surface/event_type"),
        ("{shop/: {}}", "is no surface/event_type"),
        ("{shop/view#: {}}", "is no surface/event_type"),
        ("{shop/view: {length: 0}}", "streams.shop/view.length"),
        ("{shop/view: {windows: [-7]}}", "windows are whole days >= 1, or 0"),
        ("{shop/view: {windows: [1.5]}}", "streams.shop/view.windows"),
        ("{shop/view: {windows: []}}", "at least one"),
        ("{shop/view: {half_life_days: 0}}", "half_life_days"),
        ("{shop/view: {attributes: [item, colour]}}", "unknown attribute 'colour'; allowed: item, category"),
        (
            "{shop/red: {where: {event_type: view, attributes: {colour: red}}}}",
            "condition on unknown 'colour'",
        ),
        ("{shop/red: {where: {event_type: view, attributes: {category: []}}}}", "no value for 'category'"),
        ("{shop/view: {where: {attributes: {category: red}}}}", "events that miss them carry its name too"),
        ("{shop/done: {where: {event_type: [view, conversion]}}}", "mixes conversion types and others"),
        ("{shop/conversion#buy: {}}", "gives a session kind to a conversion type"),
        ("{shop/view#buy: {}}", "session.kinds is off"),
        ("{shop/view#buy: {windows: [1]}}", "declare them on 'shop/view'"),
        (
            "{feed/liked: {where: {event_type: [like, save]}}, feed/like: {}}",
            "'feed/like' and 'feed/liked' overlap",
        ),
    ],
)
def test_each_violation_is_named(text: str, said: str) -> None:
    found = trouble(text)
    assert any(re.search(said, sentence) for sentence in found), found


def test_all_violations_are_said_at_once() -> None:
    text = (
        "{shop/view: {length: 0, colour: 1}, feed: {}, a/b: {where: {event_type: x}}, a/c: {where: {event_type: x}}, "
        "a/conversion#buy: {}}"
    )
    found = " | ".join(trouble(text, "mask.delta=x"))
    for part in (
        "length",
        "colour",
        "mask.delta",
        "'feed' is no",
        "'a/b' and 'a/c' overlap",
        "conversion type",
    ):
        assert part in found


def test_disjoint_filters_and_a_switch_written_as_yaml_writes_it_are_sound() -> None:
    text = (
        "{feed/gold: {where: {event_type: view, attributes: {category: g}}}, "
        "feed/rest: {where: {event_type: view, attributes: {category: [s, b]}}}, shop/view#buy: {length: 2}}"
    )
    assert trouble(text, "session.kinds=on") == []
    assert load_config(settings=["session.kinds=off"]).session.kinds == "off"


values = st.sampled_from("xyz")
filters = st.builds(
    lambda name, surfaces, types, categories: (name, surfaces, types, categories),
    st.sampled_from(["a/p", "a/q", "b/p", "a/n1", "b/n2"]),
    st.sets(st.sampled_from("ab"), max_size=2),
    st.sets(st.sampled_from("pqr"), max_size=2),
    st.sets(values, max_size=2),
)


@given(st.lists(filters, min_size=2, max_size=2, unique_by=lambda f: f[0]))
def test_two_streams_overlap_iff_an_event_meets_both(
    chosen: list[tuple[str, set[str], set[str], set[str]]],
) -> None:
    options = {
        name: StreamOptions(
            where=StreamWhere(
                surface=tuple(surfaces),
                event_type=tuple(types),
                attributes={"category": tuple(categories)} if categories else {},
            )
        )
        for name, surfaces, types, categories in chosen
    }

    def member(
        name: str, surfaces: set[str], types: set[str], categories: set[str], event: tuple[str, ...]
    ) -> bool:
        surface, kind, category = event
        own = name.split("/")
        inside = surface in (surfaces or {own[0]}) and kind in (types or {own[1]})
        return (inside and (not categories or category in categories)) or [surface, kind] == own

    events = itertools.product("ab", ["p", "q", "r", "n1", "n2"], "xyz")
    shared = any(all(member(*stream, event) for stream in chosen) for event in events)
    found = violations(options, conversion_types=(), attributes=(), kinds=False)
    assert any("overlap" in sentence for sentence in found) == shared


def test_the_digest_of_what_defines_an_event_is_blind_to_kinds_and_streams() -> None:
    plain = Config()
    kinded = load_config(settings=["session.kinds=on", "streams.shop/view.length=3"])
    assert plain.digest("session", "dwell") == kinded.digest("session", "dwell")
    assert plain.digest("session.kinds") != kinded.digest("session.kinds")
    assert plain.digest() != kinded.digest()


# ---------------------------------------------------------------- names

names = st.text("ab/_#-. :AB0é", min_size=1, max_size=6)
streams = st.builds(lambda a, b: f"{a}/{b}", names, names)
CODES = {"s": "/", "u": "_", "k": "#", "d": "-", "p": ".", "b": " ", "c": ":"}


def read_back(name: str) -> tuple[str, str, str]:
    """Stream, statistic and window of a column name, by the rule read backwards."""
    text, statistic, window = name.rsplit("__", 2)
    signs = ["s"]
    if text.count("_") > 1:
        text, _, told = text.rpartition("_")
        signs = re.findall(r"x[0-9a-f]+x|[a-z]", told)
    parts = text.split("_")
    stream = parts[0]
    for sign, part in zip(signs, parts[1:], strict=True):
        if sign == "a":
            stream += part[:1].upper() + part[1:]
        else:
            stream += (CODES.get(sign) or chr(int(sign[1:-1], 16))) + part
    return stream, statistic, window


@given(streams, st.sampled_from(["n", "z_sum", "last_ts"]), st.sampled_from([0, 1, 28]))
def test_a_column_name_can_be_read_back_so_no_two_are_alike(stream: str, statistic: str, days: int) -> None:
    name = column_name(stream, statistic, days)
    assert re.fullmatch("[a-z0-9_]+", name)  # no capital: engines that ignore case keep them apart
    assert read_back(name) == (stream, statistic, f"{days}d" if days else "half7d")


@pytest.mark.parametrize(
    ("stream", "name"),
    [
        ("shop/view", "shop_view__n__7d"),
        ("shop/add_to_cart", "shop_add_to_cart_suu__n__7d"),
        ("shop_add/to_cart", "shop_add_to_cart_usu__n__7d"),
        ("shop/view#buy", "shop_view_buy_sk__n__7d"),
        ("Shop/view", "_shop_view_as__n__7d"),
    ],
)
def test_names_of_columns_by_example(stream: str, name: str) -> None:
    assert column_name(stream, "n", 7) == name


def test_columns_follow_windows_and_attributes() -> None:
    config = load_config(settings=["streams={a/b: {windows: [3, 0], attributes: [item], half_life_days: 2}}"])
    assert config.declaration("a/b").columns() == (
        "a_b__n__3d", "a_b__conversions__3d", "a_b__n__half2d", "a_b__decayed_n__half2d", "a_b__conversions__half2d",
    )  # fmt: skip
    every = config.declaration("x/y").columns()
    assert len(set(every)) == len(every) == 4 * 8 + 1


@pytest.mark.parametrize(
    ("name", "parts", "base"),
    [
        ("shop/view", ("shop", "view", None), "shop/view"),
        ("app/shop/view#buy", ("app/shop", "view", "buy"), "app/shop/view"),
        ("a#1/view", ("a#1", "view", None), "a#1/view"),
    ],
)
def test_a_stream_name_has_three_parts(name: str, parts: tuple[str, str, str | None], base: str) -> None:
    assert (split_stream(name), base_stream(name)) == (parts, base)


def test_a_stream_that_only_the_data_name_may_hold_anything() -> None:
    assert Config().declaration("shop/#").events.own == ("shop", "#")
