"""Configs: overrides, identity and the messages of a person's mistakes."""

from pathlib import Path
from typing import Literal

import pytest

from infra.config import Config, apply_overrides, execution, parse_override
from infra.errors import UserError


class Inner(Config):
    steps: int = 10
    """Steps."""
    device: str = execution("auto")
    """Where."""


class Outer(Config):
    inner: Inner = Inner()
    """Inside."""
    rate: float = 0.5
    """Rate."""
    path: Path | None = None
    """A path."""
    sizes: tuple[int, ...] = (1, 2)
    """Sizes."""


def test_overrides_reach_nested_fields_and_are_validated():
    changed = apply_overrides(Outer(), ["inner.steps=200", "rate=1", "sizes=[3, 4, 5]", "path=a/b"])
    assert changed == Outer(inner=Inner(steps=200), rate=1.0, sizes=(3, 4, 5), path=Path("a/b"))


def test_the_given_config_stays_as_it_was():
    config = Outer()
    apply_overrides(config, ["inner.steps=1"])
    assert config.inner.steps == 10


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("inner.stepz=3", ["stepz", "steps, device"]),
        ("outer=3", ["outer", "inner, rate"]),
        ("rate.x=3", ["rate.x", "'x'"]),
        ("inner.steps=many", ["inner.steps", "many"]),
        ("rate", ["'rate'", "--set train.steps=200"]),
        ("=3", ["'=3'"]),
    ],
)
def test_a_wrong_override_names_what_there_is(override: str, words: list[str]):
    with pytest.raises(UserError) as caught:
        apply_overrides(Outer(), [override])
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_values_are_yaml():
    assert parse_override("a=1") == ("a", 1)
    assert parse_override("a=none=x") == ("a", "none=x")
    assert parse_override("a=null") == ("a", None)


class Texts(Config):
    prompt: str = ""
    """Text."""
    path: Path | None = None
    """A path."""
    mode: Literal["off", "on"] = "on"
    """A choice of words that YAML would take for truth values."""
    inner: Inner | None = None
    """Inside, or none."""
    either: str | int = 1
    """Text or a number."""


@pytest.mark.parametrize(
    "text",
    [
        "a dog: running", "a cat #1", "[neon] city", "no", "yes", "1e3", "012", "null", "{a}", "it's \"so\"", "*star",
        "& and %", "@home", "- a list", "a\nb",
    ],
)  # fmt: skip
def test_a_text_field_takes_text_as_it_is(text: str):
    assert apply_overrides(Texts(), [f"prompt={text}"]).prompt == text


def test_text_in_quotes_and_fields_that_are_more_than_text():
    changed = apply_overrides(Texts(), ['prompt="a: b"', "path=null", "mode=off", "inner={device: cpu}", "either=7"])
    assert changed == Texts(prompt="a: b", mode="off", inner=Inner(device="cpu"), either=7)
    assert apply_overrides(Texts(path=Path("x")), ["path=none"]).path is None
    assert apply_overrides(changed, ["inner.device=no"]).inner == Inner(device="no")


def test_a_value_that_is_no_yaml_is_told():
    with pytest.raises(UserError, match="is not YAML"):
        apply_overrides(Outer(), ["sizes=[1, 2"])


def test_execution_fields_are_no_part_of_the_identity():
    assert Inner(device="cpu").fingerprint() == Inner(device="cuda").fingerprint()
    assert Inner(steps=11).fingerprint() != Inner().fingerprint()
    assert "device" not in Outer().identity()["inner"]


def test_another_class_with_equal_fields_has_another_fingerprint():
    class Other(Config):
        steps: int = 10
        device: str = execution("auto")

    assert Other().identity() == Inner().identity()
    assert Other().fingerprint() != Inner().fingerprint()


def test_unknown_fields_are_errors():
    with pytest.raises(ValueError, match="Extra inputs"):
        Inner(stepz=3)  # type: ignore[call-arg]


def test_replace_reads_double_underscores_as_dots():
    assert Outer().replace(inner__steps=3, rate=2.0) == Outer(inner=Inner(steps=3), rate=2.0)
