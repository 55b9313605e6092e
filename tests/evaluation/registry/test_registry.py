"""The registry: trigger words, and what is said about an entry that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from components.base.model import BaseModel, LoraFile
from evaluation.registry.registry import RegistryEntry, entry_named
from infra.errors import UserError


def entry(name: str = "ink", path: Path = Path("/nowhere/ink.safetensors"), **fields: object) -> RegistryEntry:
    return RegistryEntry(name=name, title="Ink", base=BaseModel(path=path), licence="Apache-2.0", **fields)


@pytest.mark.parametrize(
    ("trigger", "prompt"),
    [
        ("", "a fox"),
        ("ink drawing", "ink drawing, a fox"),
        ("ink drawing of {prompt}, on paper", "ink drawing of a fox, on paper"),
    ],
)
def test_trigger_words_go_around_the_prompt(trigger: str, prompt: str):
    assert entry(trigger=trigger).full_prompt("a fox") == prompt


def test_a_missing_file_is_named_with_its_entry():
    with pytest.raises(UserError, match=r"'ink'.*/nowhere/ink\.safetensors"):
        entry().as_input()


def test_a_missing_lora_is_named_with_its_entry(image_model: Path):
    lora = LoraFile(path=Path("/nowhere/style.safetensors"))
    broken = entry().replace(base=BaseModel(path=image_model, loras=(lora,)))
    with pytest.raises(UserError, match=r"'ink'.*/nowhere/style\.safetensors"):
        broken.as_input()


def test_an_unknown_name_lists_the_known_ones():
    entries = [entry("ink"), entry("neon")]
    assert entry_named("neon", entries) is entries[1]
    with pytest.raises(UserError, match="'oil'.*ink, neon"):
        entry_named("oil", entries)


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden"])
def test_a_name_is_a_folder_name(name: str):
    with pytest.raises(ValidationError):
        entry(name)
