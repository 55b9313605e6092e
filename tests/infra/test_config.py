"""Configs: overrides, identity and the messages of a person's mistakes."""

from pathlib import Path

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
