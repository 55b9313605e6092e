"""Tensors, in a file that is valid again."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.components.files.mutations.headers import renamed, spellings
from tests.components.files.mutations.raw import Draw, one

Tensors = dict[str, Tensor]

TORCH_DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.int16,
    torch.uint8, torch.bool, torch.complex64,
)  # fmt: skip
PART = "down_blocks.0.motion_modules.0."
STRANGERS = {  # one or two tensors of each kind that there is
    "motion": {PART + "temporal_transformer.transformer_blocks.0.strange": (3,)},
    "mid": {"mid_block.motion_modules.0.temporal_transformer.norm.weight": (96,)},
    "lora": {PART + "attn1.to_q.lora_A.weight": (4, 32), PART + "attn1.to_q.lora_B.weight": (32, 4)},
    "half": {PART + "attn1.to_q.lora_A.weight": ()},
    "adapter": {"down_blocks.0.attentions.0.transformer_blocks.9.attn1.to_q.lora_A.weight": (4, 32)},
    "kohya": {"lora_unet_mid_block_attentions_0_proj_out.lora_down.weight": (4, 96)},
    "kohya elsewhere": {f"lora_unet_nowhere.lora_{side}.weight": (4, 4) for side in ("down", "up")},
    "loha": {"lora_unet_mid_block_attentions_0_proj_out.hada_w1_a": (4, 4)},
    "dora": {"lora_unet_mid_block_attentions_0_proj_out.dora_scale": (4,)},
    "embedding": {"emb_params": (3, 128)},
    "another embedding": {"string_to_param.#": (3, 128)},
    "checkpoint": {"model.diffusion_model.input_blocks.0.0.weight": (32, 4, 3, 3)},
    "beside a checkpoint": {"model_ema.decay": (), "model.diffusion_model.strange": (2,)},
    "beside its encoder": {"cond_stage_model.transformer.text_model.strange": (2,), "first_stage_model.strange": (2,)},
    "unet": {"conv_in.weight": (32, 4, 3, 3), "down_blocks.0.resnets.0.norm1.bias": (32,)},
    "controlnet": {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)},
    "counters": {"epoch": (), "global_step": (1,)},
    "unknown": {"strange": (2,)},
}


def opened(path: Path) -> tuple[Tensors, Callable[[], None], Any]:
    """The dict of the tensors, what writes the file again, and all that a pickle holds."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        return tensors, lambda: save_file({n: t.contiguous().clone() for n, t in tensors.items()}, path, metadata), None
    zipped = zipfile.is_zipfile(path)
    content = torch.load(path, weights_only=True)
    held = content.get("state_dict", content.get("string_to_param", content))
    return held, lambda: torch.save(content, path, _use_new_zipfile_serialization=zipped), content


def change_tensors(draw: Draw, path: Path) -> None:
    tensors, write, _ = opened(path)
    name, how = draw(one(*tensors)), draw(one(*TENSORS))
    tensor = tensors[name]
    if how == "value" and tensor.numel():
        value = draw(one(math.nan, math.inf, -math.inf, 60_000.0))
        tensor.view(-1)[draw(st.integers(0, tensor.numel() - 1))] = value
    elif how == "huge":
        value, dtype = draw(one((1e30, torch.float32), (3e38, torch.float32), (1e300, torch.float64)))
        for each in draw(one([name], list(tensors))):
            tensors[each] = torch.full_like(tensors[each], value, dtype=dtype)
    elif how == "dtype":
        tensors[name] = tensor.to(draw(one(*TORCH_DTYPES)))
    elif how == "all dtypes":
        dtype = draw(one(*TORCH_DTYPES))
        tensors |= {each: value.to(dtype) for each, value in tensors.items()}
    elif how == "shape":
        sides = list(tensor.shape)
        more = ([*sides, 1], [1, *sides], sides[:-1], [side + 1 for side in sides], [0, *sides[1:]], [2, *sides[1:]])
        tensors[name] = torch.ones(draw(one([], [0], [1, 3000], [3000, 1], [tensor.numel()], sides[::-1], *more)))
    elif how == "drop":
        for each in {name, *draw(st.lists(one(*tensors), max_size=3))}:
            del tensors[each]
    elif how == "drop a layer":
        layer = re.sub(r"(\.processor\.to_\w+_lora|\.lora_\w+)?(\.(down|up))?\.\w+$", ".", name)
        for each in [each for each in tensors if each.startswith(layer)]:
            del tensors[each]
    elif how == "drop alike":
        end = name.rpartition(".")[2]
        for each in [each for each in tensors if each.rpartition(".")[2] == end][draw(st.integers(0, 1)) :]:
            del tensors[each]
    elif how == "rename":
        tensors[draw(renamed(name)).replace("\ud800", "?")] = tensors.pop(name)
    elif how == "spelling":
        tensors[draw(one(*spellings(name)))] = torch.full_like(tensor, draw(one(7.0, 0.0)))
    else:
        for each, shape in STRANGERS[draw(one(*STRANGERS))].items():
            tensors.setdefault(each, torch.ones(shape))
    write()


TENSORS = (
    "value", "huge", "dtype", "all dtypes", "shape", "shape", "drop", "drop a layer", "drop alike", "rename",
    "spelling", "strangers", "strangers",
)  # fmt: skip
