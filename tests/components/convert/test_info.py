from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest
from safetensors import safe_open

from components.convert.info import describe
from infra.errors import UserError
from tests.components import original_names as names


def test_a_v1_file_without_notes_is_known_by_its_positions(tmp_path: Path) -> None:
    for positions, preset, image in ((24, "v1", "pooled"), (32, "v3", "per_frame")):
        shapes = names.motion_module(names.SD15, positions)
        header = {"__metadata__": {}} | {
            name: {"dtype": "F16", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()
        }
        at = 0
        for name, shape in shapes.items():
            header[name]["data_offsets"] = [at, at := at + 2 * math.prod(shape)]
        text = json.dumps(header).encode()
        with (tmp_path / "a.safetensors").open("wb") as file:  # sparse: the tensors take no room and are never read
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + at)
        described = describe(tmp_path / "a.safetensors")
        assert (described["preset"], described["image_group_norm"]) == (preset, image)
        assert described["parameters"] == 417_137_600


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def test_every_file_says_what_it_is(trained: dict[str, Path]) -> None:
    expected = {"base_model": "tiny", "preset": "from-base", "group_norm": "per_frame", "max_frames": "32"}
    for kind, file in (
        ("motion-module", trained["motion-module"] / "original" / "motion_module.safetensors"),
        ("motion-lora", trained["motion-lora"] / "motion_lora.safetensors"),
        ("domain-adapter", trained["domain-adapter"] / "domain_adapter.safetensors"),
    ):
        metadata = metadata_of(file)
        notes = {name.removeprefix("animateflow."): value for name, value in metadata.items()}
        of_kind = {"base_model": "tiny"} if kind == "domain-adapter" else expected
        assert of_kind.items() <= notes.items()
        assert notes["stage"] == kind
        assert notes["beta_schedule"] == "linear"
        assert len(notes["recipe_fingerprint"]) == 64
        assert kind == "motion-module" or notes["rank"] == notes["alpha"] == "4"
        for field in ("sai_model_spec", "architecture", "implementation", "title", "description"):
            assert metadata[f"modelspec.{field}"]
        raw = file.read_bytes()
        data = raw[8 + int.from_bytes(raw[:8], "little") :]
        assert metadata["modelspec.hash_sha256"] == f"0x{hashlib.sha256(data).hexdigest()}"


def test_describe(trained: dict[str, Path]) -> None:
    module = describe(trained["motion-module"])
    assert (module["kind"], module["format"], module["preset"]) == ("motion-module", "diffusers", "from-base")
    assert (
        module["parameters"]
        == json.loads((trained["motion-module"] / "record.json").read_text())["counts"]["trainable_parameters"]
    )
    assert module["metadata"]["animateflow.group_norm"] == "per_frame"
    lora_file = describe(trained["motion-lora"] / "original" / "motion_lora.safetensors")
    assert (lora_file["kind"], lora_file["format"], lora_file["rank"]) == ("motion-lora", "original", 4)
    assert describe(trained["domain-adapter"])["kind"] == "domain-adapter"


def test_a_flipped_bit_is_found_by_the_hash(trained: dict[str, Path], tmp_path: Path) -> None:
    raw = bytearray((trained["motion-lora"] / "motion_lora.safetensors").read_bytes())
    (tmp_path / "a.safetensors").write_bytes(raw)
    assert describe(tmp_path / "a.safetensors", hashes=True)["sha256"]
    raw[-1000] ^= 1
    (tmp_path / "a.safetensors").write_bytes(raw)
    describe(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="its metadata says"):
        describe(tmp_path / "a.safetensors", hashes=True)
