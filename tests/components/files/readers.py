"""Readers, each of which loads a file into a copy of its model and sees that this is the whole file; and the judgement
of a file by its reader, its description and its conversions.

*Whole* is judged from the file itself, read by safetensors or torch and by no code of ours but the table of names:
every tensor in it is in the model, with its values, and the model has nothing else that it should have from it.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from components.base.checks import PREFIXES, check_single_file
from components.base.textual_inversion import add_textual_inversion
from components.convert.formats import export_weights, import_original
from components.convert.info import describe
from components.files.state_dict_keys import DIFFUSERS_PE, lora_to_diffusers, motion_module_to_diffusers
from components.files.weights import read_header
from components.lora import lora
from components.lora.kohya import fuse_lora
from components.lora.stack import LoraStack
from components.motion.files import WEIGHTS_NAME, load_motion_module
from infra.errors import UserError
from tests.components.files.fuzz_setup import Bench, State, finite, guarded, tensors_in, unlike, used
from tests.components.files.mutations.pickles import MARK

PEFT = "lora_adapter_metadata"
UNUSED = ("position_ids", "logit_scale", "text_projection", "text_projection.weight")

Read = Callable[[Bench, Path], State]


def read_motion_module(bench: Bench, path: Path) -> State:
    found = load_motion_module(path)[0].state_dict()
    file = path / WEIGHTS_NAME if path.is_dir() else path
    given = used(file, motion_module_to_diffusers, whole_unet=path.is_file())
    positions = {name for name in bench.module if name.endswith(DIFFUSERS_PE)}
    assert found.keys() == bench.module.keys()
    assert given.keys() in (found.keys(), found.keys() - positions), "not all positions, or tensors passed over"
    assert finite(found)
    for name, tensor in found.items():
        expected = given.get(name, bench.module[name]).float()
        if name in positions:  # made anew if they are sinusoids; of another length where the notes alone say it
            length = min(tensor.shape[1], expected.shape[1]) if name not in given else tensor.shape[1]
            assert torch.allclose(tensor[:, :length], expected[:, :length], atol=1e-2)
        else:
            assert tensor.shape == bench.module[name].shape
            assert torch.equal(tensor, expected), name
    return found


@contextmanager
def unchanged(*models: tuple[nn.Module, State]) -> Iterator[None]:
    """The block, refused or not, leaves the models as they were; one that it changed is put right for the next test."""
    try:
        yield
    finally:
        changed = [(model, state) for model, state in models if unlike(model.state_dict(), state)]
        for model, state in changed:
            model.load_state_dict(state)
        assert not changed


def put_lora_on(kind: str) -> Read:
    def read(bench: Bench, path: Path) -> State:
        unet, before = bench.unets[kind], bench.before[kind]
        stack = LoraStack(unet)
        with unchanged((unet, before)):
            weights = lora.load(path, kind)
            stack.add("a", weights)
            after = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
            stack.clear()
        given = used(path, lora_to_diffusers)
        assert weights.state.keys() == given.keys()
        layers = {name for name, _ in unet.named_modules() if re.fullmatch(lora.TARGET_MODULES[kind], name)}
        assert weights.layers == layers
        factor = peft_factor(path, weights.rank)
        deltas = {}
        for layer in layers:
            down, up = (given[f"unet.{layer}.lora_{side}.weight"] for side in "AB")
            assert torch.equal(weights.down_and_up(layer)[0], down)
            assert weights.down_and_up(layer)[1].any() or not up.any(), f"{layer} is not touched"
            deltas[f"{layer}.weight"] = factor * up.double() @ down.double()
        check_sums(after, before, deltas)
        return weights.state

    return read


def peft_factor(path: Path, rank: int) -> float:
    """alpha / rank by peft's metadata, which say nothing else."""
    try:
        with safe_open(path, "pt") as file:
            said = json.loads((file.metadata() or {}).get(PEFT, "{}"))
    except SafetensorError:
        return 1.0
    said = {name.removeprefix("unet."): value for name, value in said.items()}
    assert not said.get("use_rslora")
    assert not said.get("alpha_pattern")
    assert said.get("bias", "none") == "none"
    assert "r" not in said or float(said["r"]) == rank
    return float(said.get("lora_alpha", 1)) / float(said.get("r", said.get("lora_alpha", 1)))


def check_sums(after: State, before: State, deltas: State) -> None:
    """Weights are W + delta where there is one, within rounding, and the very bits elsewhere."""
    assert finite(after)
    assert set(unlike(after, before)) <= deltas.keys() <= before.keys()
    for name, delta in deltas.items():
        expected = before[name].double() + delta.view_as(before[name])
        room = 2e-3 * max(1.0, float(delta.abs().max()))
        assert torch.allclose(after[name].double(), expected, rtol=1e-3, atol=room), name


def fold_kohya(bench: Bench, path: Path) -> State:
    unet, text_encoder = bench.unets["domain-adapter"], bench.pipeline.text_encoder
    before = {"lora_unet_": bench.before["domain-adapter"], "lora_te_text_model_": bench.text_before}
    with unchanged((unet, before["lora_unet_"]), (text_encoder, before["lora_te_text_model_"])):
        fuse_lora(unet, text_encoder, path, 1.0)
        after = [{name: t.clone() for name, t in model.state_dict().items()} for model in (unet, text_encoder)]
        unet.load_state_dict(before["lora_unet_"])
        text_encoder.load_state_dict(before["lora_te_text_model_"])
    given = dict(tensors_in(path))
    left = set(given)
    assert len(left) == len(tensors_in(path))
    for (prefix, state), folded in zip(before.items(), after, strict=True):
        deltas = {}
        for name in state:
            key = prefix + name.removesuffix(".weight").removeprefix("text_model.").replace(".", "_")
            if f"{key}.lora_up.weight" not in given:
                continue
            up, down = (given[f"{key}.lora_{side}.weight"].double().flatten(1) for side in ("up", "down"))
            alpha = float(given.get(f"{key}.alpha", len(down)))
            deltas[name] = alpha / len(down) * up @ down
            left -= {f"{key}.lora_up.weight", f"{key}.lora_down.weight", f"{key}.alpha"}
        check_sums(folded, state, deltas)
    assert not left, "tensors of the file were passed over"
    return after[0] | after[1]


def teach_word(bench: Bench, path: Path) -> State:
    pipeline = copy.copy(bench.pipeline)
    pipeline.tokenizer, pipeline.text_encoder = (
        copy.deepcopy(part) for part in (bench.pipeline.tokenizer, bench.pipeline.text_encoder)
    )
    known = len(pipeline.tokenizer)
    try:
        word = add_textual_inversion(pipeline, path)
    except UserError:
        assert len(pipeline.tokenizer) == known
        assert not unlike(pipeline.text_encoder.state_dict(), bench.text_before)
        raise
    given = [t for name, t in tensors_in(path) if not re.fullmatch(r"string_to_token\..*", name)]
    assert len(given) == 1, "tensors of the file were passed over"
    vectors = given[0].reshape(-1, 128).float()
    rows = pipeline.text_encoder.get_input_embeddings().weight
    assert len(vectors) > 0
    assert finite({word: rows})
    assert torch.equal(rows[known:], vectors)
    assert torch.equal(rows[:known], bench.pipeline.text_encoder.get_input_embeddings().weight)
    assert pipeline.tokenizer.convert_tokens_to_ids(word) == known
    return {word: rows[known:]}


def account_for_checkpoint(bench: Bench, path: Path) -> State:
    check_single_file(read_header(path), bench.reference)
    assert table_of(path) == table_of(bench.sound / "checkpoint.safetensors")
    return {}


def table_of(path: Path) -> dict[str, tuple[bool, tuple[int, ...]]]:
    """By safetensors: whether a weight is of floating-point numbers, and its shape, where a 1x1 convolution of the
    VAE's attention is a linear layer."""
    found = {}
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118
            entry = file.get_slice(name)
            shape = tuple(entry.get_shape())
            shape = shape[:2] if ".attn_1." in name and set(shape[2:]) <= {1} else shape
            bare = name.removeprefix("state_dict.").removeprefix("module.")
            if bare.startswith(tuple(PREFIXES.values())) and not bare.endswith(UNUSED):
                found[bare] = (entry.get_dtype() in ("F16", "BF16", "F32", "F64"), shape)
    return found


@dataclass(frozen=True)
class Reader:
    """A sound file, what reads it, and how often that is tried; `damaged` is the part of a folder that is."""

    name: str
    read: Read
    examples: int = 10
    damaged: tuple[str, ...] = ("",)


READERS = {
    reader.name: reader
    for reader in (
        Reader("motion.safetensors", read_motion_module, 6),
        Reader("motion", read_motion_module, 8, (WEIGHTS_NAME, "config.json")),
        Reader("motion.ckpt", read_motion_module, 6),
        Reader("motion.pt", read_motion_module, 6),
        Reader("domain-adapter.safetensors", put_lora_on("domain-adapter")),
        Reader("domain-adapter-diffusers.safetensors", put_lora_on("domain-adapter")),
        Reader("motion-lora.safetensors", put_lora_on("motion-lora")),
        Reader("motion-lora-diffusers.safetensors", put_lora_on("motion-lora")),
        Reader("kohya.safetensors", fold_kohya),
        Reader("my-word.safetensors", teach_word),
        Reader("my-word.pt", teach_word),
        Reader("checkpoint.safetensors", account_for_checkpoint),
    )
}


def attempt(what: Callable[[], Any], path: Path) -> Any:
    """The answer; none is an error of ours that says which file, as text that any terminal takes."""
    with guarded():
        try:
            return what()
        except UserError as error:
            refusal = error
    assert refusal.exit_code == 2
    assert str(path) in refusal.found, str(refusal)
    assert str(refusal).encode()
    return None


def outcome(bench: Bench, reader: Reader, path: Path, convert: str = "both") -> str:
    """`whole` or `refused`; fails where a load, a description or a conversion did anything else."""
    loaded = attempt(lambda: reader.read(bench, path), path)
    attempt(lambda: describe(path), path)
    check_hash(path, attempt(lambda: describe(path, hashes=True), path))
    for make in (export_weights, import_original):
        if loaded is None or convert in ("both", make.__name__):
            check_conversion(bench, reader, path, make, loaded)
    assert not (path.parent / MARK).exists(), "a pickle was run"
    return "refused" if loaded is None else "whole"


def check_hash(path: Path, described: dict[str, Any] | None) -> None:
    """Tensors that are not those their maker hashed have been refused."""
    if described is not None and described["hash_sha256"] is not None:
        raw = Path(described["path"]).read_bytes()
        actual = hashlib.sha256(raw[8 + int.from_bytes(raw[:8], "little") :]).hexdigest()
        assert described["hash_sha256"].lower().removeprefix("0x") == actual


def check_conversion(bench: Bench, reader: Reader, path: Path, make: Any, loaded: State | None) -> None:
    target = path.parent / "converted.safetensors"
    shutil.rmtree(target, ignore_errors=True)
    target.unlink(missing_ok=True)
    if attempt(lambda: make(path, target), path) is None:
        assert not target.exists()
        return
    if loaded is None:  # a LoRA that does not fit this model may be whole for another
        kind = read_header(path).kind
        assert kind in lora.TARGET_MODULES
        assert not unlike(lora.load(target, kind).state, lora.load(path, kind).state)
        return
    assert not unlike(reader.read(bench, target), loaded)
    if make is export_weights and reader.read is read_motion_module:
        assert load_file(target).keys() == bench.motion_names
