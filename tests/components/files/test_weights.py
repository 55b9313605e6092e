from __future__ import annotations

import os
import pickle
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from components.files.kinds import KINDS, infer_kind
from components.files.weights import read_header, read_tensors, write_weights
from infra.errors import UserError


def zip_archive(path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, path)


def cut_short(path: Path) -> None:
    save_file({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-100])


def trailing(path: Path) -> None:
    save_file({"a": torch.zeros(10)}, path)
    path.write_bytes(path.read_bytes() + b"more")


def with_header(text: bytes, data: int = 8) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(data))


def tensor(dtype: str = '"F32"', shape: str = "[2]", offsets: str = "[0,8]", name: str = "a") -> bytes:
    return f'"{name}":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}'.encode()


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda path: path.write_text("<!DOCTYPE html><html>"), "is a web page"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "is a Python pickle"),
        (zip_archive, "is a zip archive"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "is a git-lfs pointer"),
        (lambda path: path.write_text('{"error": "login"}'), "is a JSON text"),
        (lambda path: path.write_bytes(b"\x1f\x8b" + bytes(100)), "is a gzip archive"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(bytes(range(200, 250))), "is not a safetensors file"),
        (lambda path: path.write_bytes((20).to_bytes(8, "little") + b"{" + b"x" * 40), "is damaged"),
        (lambda path: path.write_bytes((2**40).to_bytes(8, "little") + b"{" * 40), "100,000,000 are allowed"),
        (cut_short, "by its header"),
        (trailing, "4 bytes after its last tensor"),
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is a folder"),
        (with_header(b"{" + tensor() + b"," + tensor() + b"}"), "'a' appears twice"),
        (with_header(b"{" + tensor('"F33"') + b"}"), "unknown dtype"),
        (with_header(b"{" + tensor(shape="[-2]") + b"}"), "has the shape"),
        (with_header(b"{" + tensor(shape="[3]") + b"}"), "takes 12"),
        (with_header(b"{" + tensor(shape="[true,2]") + b"}"), "has the shape"),
        (with_header(b"{" + tensor(offsets="[8,0]") + b"}"), "has the offsets"),
        (with_header(b"{" + tensor(offsets="[4,12]") + b"}", 12), "leave a gap"),
        (with_header(b"{" + tensor() + b"," + tensor(offsets="[4,12]", name="b") + b"}", 12), "overlap"),
        (with_header(b'{"a":{"dtype":"F32","shape":[2]}}'), "does not give dtype"),
        (with_header(b'{"__metadata__":{"a":1},' + tensor() + b"}"), "metadata is not text"),
        (with_header(b"{" + b'{"a":' * 100_000, 0), "not JSON"),
        (with_header(b'{"a":"\xff\xfe"}'), "not JSON"),
    ],
)
def test_what_is_not_safetensors_is_named(write: Callable[[Path], object], says: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write(path)
    with pytest.raises(UserError, match=says) as caught:
        read_header(path)
    assert caught.value.exit_code == 2
    assert str(path) in str(caught.value)


class Malicious:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_run_nothing(zipped: bool, tmp_path: Path) -> None:
    path, mark = tmp_path / "model.ckpt", tmp_path / "was-run"
    if zipped:
        torch.save({"state_dict": {"a": torch.zeros(2)}, "callbacks": Malicious(mark)}, path)
    else:
        path.write_bytes(pickle.dumps({"callbacks": Malicious(mark)}, protocol=2))
    with pytest.raises(UserError, match=r"cannot be read safely .*mkdir"):
        read_header(path)
    assert not mark.exists()


def test_a_pickle_that_claims_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(10**12)}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="not a plain tensor"):
        read_header(tmp_path / "a.ckpt")
    torch.save({"a": torch.zeros(3).to_sparse()}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="not a plain tensor"):
        read_header(tmp_path / "a.ckpt")
    torch.save({"epoch": 3}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="without tensors"):
        read_header(tmp_path / "a.ckpt")


def test_a_safetensors_file_under_a_pickle_s_name_is_read_as_what_it_is(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "a.ckpt")
    assert read_header(tmp_path / "a.ckpt").shapes == {"a": (3,)}
    assert torch.equal(read_tensors(read_header(tmp_path / "a.ckpt"))["a"], torch.ones(3))


def test_a_header_that_begins_as_pickles_do_is_a_header(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(3)}
    for length in range(100, 400):
        save_file(tensors, tmp_path / "a.ckpt", {"x": "x" * length})
        if (tmp_path / "a.ckpt").read_bytes()[0] == 0x80:
            break
    assert read_header(tmp_path / "a.ckpt").shapes == {"a": (3,)}


def test_the_header_of_a_huge_file_is_read_at_once(tmp_path: Path) -> None:
    """40 GB that take no room on the disk: reading them would take minutes."""
    import time

    numbers = 10 * 2**30
    text = f'{{"a":{{"dtype":"F32","shape":[{numbers}],"data_offsets":[0,{4 * numbers}]}}}}'.encode()
    with (tmp_path / "a.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + 4 * numbers)
    started = time.process_time()  # whoever else is at work on the machine
    assert read_header(tmp_path / "a.safetensors").parameters == numbers
    assert time.process_time() - started < 1


def test_the_same_weights_are_the_same_bytes(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6.0).view(2, 3), "a": torch.ones(3, dtype=torch.float16)}
    notes = {f"note{i}": str(i) for i in range(20)}
    for name in "xy":
        write_weights(tmp_path / name, tensors, notes)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    assert {name: t.tolist() for name, t in load_file(tmp_path / "x").items()} == {
        name: t.tolist() for name, t in tensors.items()
    }
    assert read_header(tmp_path / "x").metadata.items() >= notes.items()
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) & 0o044
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "y"]


KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
LDM = "model.diffusion_model.input_blocks.0.0.weight"
MOTION = "down_blocks.0.motion_modules.0.a"
CROSS = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("kohya-lora", {f"{KEY}.lora_down.weight": (4, 768), f"{KEY}.lora_up.weight": (320, 4)}),
        ("sdxl-lora", {f"{KEY}.lora_down.weight": (4, 2048), f"{KEY}.lora_up.weight": (640, 4)}),
        ("sdxl-lora", {"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 1280)}),
        ("sdxl-lora", {"lora_unet_input_blocks_4_1_proj_in.lora_down.weight": (4, 640)}),
        ("sd2-lora", {f"{KEY}.lora_down.weight": (4, 1024), f"{KEY}.lora_up.weight": (320, 4)}),
        ("loha", {f"{KEY}.hada_w1_a": (4, 4)}),
        ("lokr", {f"{KEY}.lokr_w1": (4, 4)}),
        ("locon-mid", {f"{KEY}.lora_mid.weight": (4, 4, 3, 3), f"{KEY}.lora_down.weight": (4, 768)}),
        ("dora", {f"{KEY}.dora_scale": (4, 1), f"{KEY}.lora_down.weight": (4, 768)}),
        ("lycoris", {f"{KEY}.diff": (4, 4)}),
        ("checkpoint", {LDM: (320, 4, 3, 3), CROSS: (320, 768)}),
        ("inpainting-checkpoint", {LDM: (320, 9, 3, 3), CROSS: (320, 768)}),
        ("pix2pix-checkpoint", {LDM: (320, 8, 3, 3), CROSS: (320, 768)}),
        ("sd2-checkpoint", {LDM: (320, 4, 3, 3), CROSS: (320, 1024)}),
        ("sdxl-checkpoint", {LDM: (320, 4, 3, 3), "conditioner.embedders.1.model.ln_final.bias": (1280,)}),
        ("textual-inversion", {"emb_params": (3, 768)}),
        ("textual-inversion", {"string_to_param.*": (3, 768)}),
        ("textual-inversion", {"<cat-toy>": (768,)}),
        ("sdxl-textual-inversion", {"clip_l": (3, 768), "clip_g": (3, 1280)}),
        ("controlnet", {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)}),
        (
            "sparsectrl",
            {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3), MOTION: ()},
        ),
        ("pia", {"conv_in.weight": (320, 9, 3, 3), MOTION: ()}),
        ("motion-module", {"conv_in.weight": (320, 4, 3, 3), MOTION: ()}),
        ("hotshot-xl", {"down_blocks.0.temporal_attentions.0.pos_encoder.positional_encoding": (1, 24, 320)}),
        ("unknown", {"a": (1,)}),
        ("unknown", {}),
    ],
)
def test_kinds_by_names_and_shapes(kind: str, shapes: dict[str, tuple[int, ...]]) -> None:
    assert infer_kind(shapes) == kind
    assert kind in KINDS
