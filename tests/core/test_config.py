"""The typed config: precedence, lengths of time, refused keys, stable digests."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from dynamix.config import Config, load_config
from dynamix.config_parts import seconds
from dynamix.errors import ConfigError, InputError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30m", 1800.0),
        ("24h", 86400.0),
        ("7d", 604800.0),
        ("60s", 60.0),
        ("500ms", 0.5),
        (0, 0.0),
        ("0s", 0.0),
    ],
)
def test_lengths_of_time_are_read_with_their_unit(text: object, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["30 parsecs", "", "-5s", True, None])
def test_a_length_of_time_without_a_known_unit_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="allowed"):
        seconds(text)


def test_later_files_and_settings_win(tmp_path: Path) -> None:
    beside, chosen = tmp_path / "dynamix.yaml", tmp_path / "mine.yaml"
    beside.write_text("mask: {ne_budget: 0.004, delta: 0.3}\nhistory: {embargo: 0s}\n")
    chosen.write_text("mask: {ne_budget: 0.003}\n")
    config = load_config(files=[beside, chosen], settings=["mask.delta=0.2"])
    assert (config.mask.ne_budget, config.mask.delta, config.history.embargo_s) == (0.003, 0.2, 0.0)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("mask.ne_bugdet=1", "mask.ne_bugdet"),
        ("nonsense=1", "nonsense"),
        ("mask.ne_budget=two", "mask.ne_budget"),
    ],
)
def test_a_wrong_setting_is_named(setting: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load_config(settings=[setting])


def test_a_setting_without_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="key=value"):
        load_config(settings=["mask"])


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_config(files=[path])


def test_a_missing_config_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml does not exist"):
        load_config(files=[tmp_path / "absent.yaml"])


def test_the_digest_follows_the_named_sections_only() -> None:
    plain, other = Config(), load_config(settings=["train.epochs=9"])
    assert plain.digest() != other.digest()
    assert plain.digest("mask", "history") == other.digest("mask", "history")


def test_no_click_type_leaves_the_click_head_out() -> None:
    assert load_config(settings=["click_types=[]"]).heads() == ("conversion",)
    assert Config().heads() == ("click", "conversion")


def test_errors_survive_pickling_with_their_exit_code() -> None:
    error = pickle.loads(pickle.dumps(InputError.empty("events/")))
    assert (error.exit_code, error.message) == (3, InputError.empty("events/").message)


@pytest.mark.parametrize(
    ("setting", "allowed"), [("mask.x=1", "delta"), ("x=1", "mask"), ("streams.feed/view.x=1", "protected")]
)
def test_an_unknown_key_is_refused_with_the_keys_that_stand_beside_it(setting: str, allowed: str) -> None:
    with pytest.raises(ConfigError, match="unknown config key") as refused:
        load_config(settings=[setting])
    assert allowed in refused.value.message.split("allowed here: ")[1].split(", ")


def test_options_of_boosts_name_nothing_anew_where_none_is_asked_for() -> None:
    plain = load_config()
    assert load_config(settings=["mask.token_budget=0.5"]).digest("mask") == plain.digest("mask")
    longer = [load_config(settings=["mask.boost_to=100", f"mask.token_budget={x}"]) for x in (0.98, 0.5)]
    assert len({plain.digest("mask"), *(config.digest("mask") for config in longer)}) == 3


@pytest.mark.parametrize("boost_to", [1, 50])
def test_a_boost_is_longer_than_the_history(boost_to: int) -> None:
    with pytest.raises(ConfigError, match=r"allowed: 0 \(no boosts\), or more than history.per_stream, 50"):
        load_config(settings=[f"mask.boost_to={boost_to}"])


def test_a_control_is_of_the_mixture_alone() -> None:
    with pytest.raises(ConfigError, match="control shuffled is a control of the method mix, not of neural"):
        load_config(settings=["segmentation.method=neural", "segmentation.control=shuffled"])
    assert load_config(settings=["segmentation.method=paper2"]).segmentation.method == "paper2"


@pytest.mark.parametrize("key", ["session.kinds", "mask.attributes", "train.amp"])
def test_off_is_a_word_though_yaml_reads_false(key: str) -> None:
    section, name = key.split(".")
    assert getattr(getattr(load_config(settings=[f"{key}=off"]), section), name) == "off"


def test_on_is_refused_where_it_is_no_choice() -> None:
    assert load_config(settings=["train.amp=on"]).train.amp == "on"
    with pytest.raises(ConfigError, match=r"'mask\.attributes' has value 'on'"):
        load_config(settings=["mask.attributes=on"])
