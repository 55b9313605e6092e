"""Of each class of mutation in `test_weight_fuzz` a few by name: what is refused, and why, and what is harmless."""

from __future__ import annotations

import json
import math

import pytest
import torch

from components.base.model import BaseModel, load_base
from components.convert.info import describe
from components.motion.files import WEIGHTS_NAME
from infra.errors import UserError
from tests.components.files.damage import (
    Damage,
    both,
    config,
    empty_entry,
    entry,
    every,
    many_names,
    name_by_numbers,
    note,
    packed,
    put,
    raw,
    share,
    tensors,
    text,
    without,
)
from tests.components.files.fuzz_setup import Bench, unlike
from tests.components.files.mutations.files import FILES, PLACES, replace_file
from tests.components.files.mutations.pickles import MARK, Malicious, circle, laughs
from tests.components.files.readers import PEFT, READERS, attempt, outcome

MOTION, ADAPTER, LORA, KOHYA, WORD, CHECKPOINT = (
    f"{name}.safetensors"
    for name in ("motion", "domain-adapter", "motion-lora-diffusers", "kohya", "my-word", "checkpoint")
)
AT = "down_blocks.0.motion_modules.0."
NORM, NORM_DIFFUSERS = f"{AT}temporal_transformer.norm.weight", f"{AT}norm.weight"
POSITIONS = f"{AT}temporal_transformer.transformer_blocks.0.attention_blocks.%d.pos_encoder.pe"
TO_Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"
UNET = {"conv_in.weight": torch.ones(32, 4, 3, 3), "down_blocks.0.resnets.0.norm1.bias": torch.ones(32)}

REFUSED: dict[str, list[tuple[str, Damage, str]]] = {
    "bytes": [
        (MOTION, raw(lambda raw: raw[:-1]), "file was truncated"),
        (MOTION, raw(lambda raw: raw[len(raw) // 2 :] + raw[: len(raw) // 2]), "are those of no known format"),
        (MOTION, raw(lambda raw: raw[:-9] + b"\xff" * 9), "enormous"),
        ("motion.ckpt", raw(lambda raw: raw[: len(raw) // 2]), "cannot be read safely"),
        ("motion.pt", raw(lambda raw: raw[:300] + bytes(300) + raw[600:]), "cannot be read safely"),
    ],
    "length": [
        (MOTION, raw(lambda raw: bytes(8) + raw[8:]), "not JSON"),
        (MOTION, raw(lambda raw: (10**8).to_bytes(8, "little") + raw[8:]), "file was truncated"),
    ],
    "text": [
        (MOTION, text(lambda header: header.decode().encode("utf-16-le")), "not JSON"),
        (MOTION, text(lambda header: header.replace(b"[32]", b"[" + b"9" * 5000 + b"]", 1)), "not JSON"),
        (MOTION, text(lambda header: header.replace(b"[32]", b"[1e999]", 1)), "has the shape"),
        (MOTION, text(lambda header: header.replace(b'norm.bias"', b'norm.\\ud800"', 1)), "is not a tensor name"),
        (MOTION, text(many_names), "'59999' appears twice"),
    ],
    "table": [
        (MOTION, entry(NORM, dtype="I16"), "not as floating-point"),
        (MOTION, entry(NORM, shape=[2**70]), "has the shape"),
        (MOTION, entry(NORM, shape=[2**62] * 300), "has the shape"),
        (MOTION, entry(NORM, shape=[2**62] * 100_000), "has the shape"),
        (MOTION, entry(NORM, shape=[1] * 70 + [32]), "has the shape"),
        (MOTION, entry(NORM, shape=[2, 16]), r"is \(2, 16\), not \(32,\)"),
        (CHECKPOINT, text(empty_entry), "has the shape"),
        (CHECKPOINT, entry(CONV_IN, dtype="I16"), "not as floating-point"),
    ],
    "metadata": [
        (MOTION, note("x", "\ud800"), "metadata is not text"),
        (MOTION, note("animateflow.heads", "5"), r"heads \[5, 5, 5\]"),
        (MOTION, note("animateflow.norm_groups", "9" * 5000), "not have the shape of a motion module"),
        (MOTION, both(without(".pe"), note("animateflow.max_frames", "100000")), "100000 positions"),
        (LORA, note(PEFT, "[" * 100_000), "LoRA config that cannot be read"),
        (LORA, note(PEFT, '{"r": 4, "lora_alpha": 1%s}' % ("0" * 400)), "LoRA config that cannot be read"),
        (LORA, note(PEFT, '{"r": 4, "lora_alpha": 1e-300}'), "trained with"),
        (LORA, note(PEFT, '{"r": 1, "lora_alpha": 4}'), "trained with"),
    ],
    "tensors": [
        (MOTION, put(**{NORM: torch.full((32,), 1e300, dtype=torch.float64)}), "enormous"),
        (MOTION, put(**{NORM_DIFFUSERS: torch.ones(32)}), "is unknown"),
        ("motion.ckpt", put(**{NORM_DIFFUSERS: torch.ones(32)}), "is unknown"),
        (MOTION, put(**{POSITIONS % 1: torch.ones(1, 32, 32)}), "have different positional encodings"),
        (MOTION, without(POSITIONS % 0, POSITIONS % 1), "pos_embed.pe is missing"),
        (MOTION, put(**{f"{TO_Q}.alpha": torch.tensor(4.0)}), "is a LoRA of an image model"),
        (ADAPTER, without("blocks.0.attn1.processor.to_q_lora.up.weight"), "missing or unknown"),
        (ADAPTER, without("attn1.processor.to_q_lora.up.weight", "attn1.processor.to_q_lora.down.weight"), "no weight"),
        (ADAPTER, put(**{"x.lora_A.weight": torch.tensor(1.0)}), "missing or unknown"),
        (ADAPTER, every(lambda tensor: tensor.float() * 1e25), "enormous"),
        (LORA, put(**{f"{AT}transformer_blocks.0.attn1.to_q.lora_A.weight": torch.ones(4, 32)}), "missing or unknown"),
        (KOHYA, put(**{f"{TO_Q}.lora_down.weight": torch.ones(1, 20_000),
                       f"{TO_Q}.lora_up.weight": torch.ones(20_000, 1)}), "20000"),
        (KOHYA, both(put(**{f"{TO_Q}.lora_down.weight": torch.tensor(1.0)}), without(f"{TO_Q}.alpha")),
         "cannot be multiplied"),
        (KOHYA, every(lambda tensor: tensor * 1e30), "enormous"),
        (KOHYA, put(**{f"{TO_Q}.alpha": torch.tensor(1 + 2j)}), "alpha"),
        (KOHYA, put(**{f"{TO_Q}.alpha": torch.tensor(10**12)}), "enormous"),
        (WORD, put(emb_params=torch.ones(0, 128)), "one vector or more"),
        (WORD, put(strange=torch.ones(2)), "strange"),
        (CHECKPOINT, put(**{"model.diffusion_model.strange": torch.ones(2)}), "strange is unknown"),
        (CHECKPOINT, without("first_stage_model.quant_conv.bias"), "quant_conv.bias is missing"),
    ],
    "pickles": [
        (file, damage, says)
        for file in ("motion.ckpt", "motion.pt")
        for damage, says in (
            (lambda path: put(x=Malicious(path.with_name(MARK)))(path), "cannot be read safely"),
            (put(x=torch.zeros(1).expand(10**12)), "not a plain tensor"),
            (put(x=torch.zeros(3).to_sparse()), "not a plain tensor"),
            (put(x=torch.empty(10**9, device="meta")), "not a plain tensor"),
            (put(x=circle()), "in a circle"),
            (put(x=laughs()), "in a circle"),
            (put(x=laughs(depth=2, width=5000)), "in a circle"),
            (tensors(name_by_numbers), "for a name"),
            (put(x={"y": torch.ones(1)}, **{"x.y": torch.ones(2)}), "twice"),
            (put(**{"\ud800": torch.ones(1)}), "is not a tensor name"),
            (tensors(share), "its tensors claim"),
            (every(lambda tensor: [tensor]), "without tensors"),
        )
    ] + [("motion.ckpt", packed, "compressed")],
    "config": [
        ("motion", config(motion_norm_num_groups=math.inf), "not have the shape of a motion module"),
        ("motion", config(motion_num_attention_heads=[math.inf, 8, 8]), "not have the shape of a motion module"),
        ("motion", config(block_out_channels=[32, 64]), "block_out_channels"),
        ("motion", lambda path: put(**UNET)(path / WEIGHTS_NAME), "are not of a temporal layer"),
        ("motion", lambda path: (path / "config.json").write_text("[" * 100_000), "cannot be read"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [pytest.param(*case, id=f"{what}-{i}") for what, cases in REFUSED.items() for i, case in enumerate(cases)],
)
def test_what_is_malformed_is_refused_with_its_reason(file: str, damage: Damage, says: str, bench: Bench) -> None:
    path = bench.copy_of(file)
    damage(path)
    assert outcome(bench, READERS[file], path) == "refused"
    with pytest.raises(UserError, match=says):
        READERS[file].read(bench, path)


@pytest.mark.parametrize("what", [*FILES, *PLACES])
@pytest.mark.parametrize("file", [MOTION, "motion.ckpt", KOHYA, "my-word.pt", CHECKPOINT])
def test_what_is_no_weight_file_is_refused_under_any_name(file: str, what: str, bench: Bench) -> None:
    path = bench.copy_of(file)
    replace_file(lambda choice: what, path)
    assert outcome(bench, READERS[file], path) == "refused"


@pytest.mark.parametrize(
    ("file", "change"),
    [
        (MOTION, note("animateflow.preset", "v9")),
        (MOTION, note("modelspec.title", "<b>\n")),
        (MOTION, text(lambda header: json.dumps(dict(sorted(json.loads(header).items(), reverse=True))).encode())),
        (MOTION, put(epoch=torch.tensor(3))),
        ("motion", config(_class_name="Other", strange=[])),
        ("motion.ckpt", put(**UNET)),
        (ADAPTER, note("animateflow.rank", "many")),
        (LORA, note(PEFT, '{"r": 4, "lora_alpha": 4, "bias": "none"}')),
        (KOHYA, put(**{f"{TO_Q}.alpha": torch.tensor(2.0).to(torch.float8_e4m3fn)})),
    ],
)
def test_what_leaves_the_weights_alone_leaves_them_as_they_were(file: str, change: Damage, bench: Bench) -> None:
    sound, path = READERS[file].read(bench, bench.sound / file), bench.copy_of(file)
    change(path)
    assert outcome(bench, READERS[file], path) == "whole"
    assert sound
    assert not unlike(READERS[file].read(bench, path), sound)


def test_a_bit_flipped_in_a_tensor_is_found_by_the_hash(bench: Bench) -> None:
    for file in (MOTION, ADAPTER, LORA, KOHYA, WORD):
        path = bench.copy_of(file)
        raw(lambda raw: raw[:-2] + bytes([raw[-2] ^ 1]) + raw[-1:])(path)
        assert outcome(bench, READERS[file], path) == "whole"
        with pytest.raises(UserError, match="its metadata says"):
            describe(path, hashes=True)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (raw(lambda raw: raw[:-1]), "file was truncated"),
        (raw(lambda raw: raw[:-3000] + b"\xff" * 3000), "enormous"),
        (put(**{CONV_IN: torch.full((32, 4, 3, 3), 1e300, dtype=torch.float64)}), "enormous"),
        (every(lambda tensor: tensor.view(torch.int16)), "not as floating-point"),
        (without("model.diffusion_model.out.2.bias"), "conv_out.bias is missing"),
        (without("layers.1.self_attn.q_proj.weight", "layers.1.self_attn.q_proj.bias"), "is missing"),
        (text(lambda header: header.replace(b'"cond_stage', b'"module.cond_stage')), "could not be loaded"),
    ],
)
def test_a_damaged_checkpoint_is_no_base_model(damage: Damage, says: str, bench: Bench) -> None:
    path = bench.copy_of(CHECKPOINT)
    damage(path)
    model = BaseModel(path=path, reference=bench.reference)
    assert attempt(lambda: load_base(model), path) is None
    with pytest.raises(UserError, match=says):
        load_base(model)
