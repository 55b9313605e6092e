"""What damaged weight files are tried on: models, sound files of each kind, another reader of what is in a file, and a
watch on time and memory."""

from __future__ import annotations

import copy
import re
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from components.convert.formats import import_original
from components.files.weights import write_weights
from components.motion.files import load_motion_module
from components.motion.module import insert_motion_module
from infra.pocket.personalised import save_single_file
from tests.components import original_names as names

SECONDS_MAX, MEGABYTES_MAX = 5.0, 500
# What may lie beside weights and is no weight: the official trainer's counters, and the image model around its module.
BESIDE = r"(state_dict\.)?(module\.)?(animatediff_config|epoch|global_step)(\..*)?"
IMAGE_MODEL = r"(down_blocks|mid_block|up_blocks|conv_in|conv_out|conv_norm_out|time_embedding)\."

State = dict[str, Tensor]


class TooMuch(BaseException):
    """Not an `Exception`, which readers of pickles catch."""


@contextmanager
def guarded() -> Iterator[None]:
    """Fails where the block takes this process more than `SECONDS_MAX`, or `MEGABYTES_MAX` beyond what it has."""

    def late(*_: object) -> None:
        raise TooMuch

    Path("/proc/self/clear_refs").write_text("5")  # the peak is from here on
    before = megabytes("VmRSS")
    usual = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS_MAX)
    try:
        yield
    except TooMuch:
        raise AssertionError(f"it took more than {SECONDS_MAX} s") from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, usual)
        more = megabytes("VmHWM") - before
    assert more < MEGABYTES_MAX, f"it took {more:.0f} MB"


def megabytes(field: str) -> float:
    found = re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


def tensors_in(path: Path) -> list[tuple[str, Tensor]]:
    """What another reader finds in the file: names without wrappers, those of nested dicts joined, twice if they are
    there twice."""
    try:
        content: Any = load_file(path)
    except SafetensorError:
        zipped = path.read_bytes()[:4] == b"PK\x03\x04"
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(path, weights_only=True, map_location="cpu", mmap=zipped)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    found: list[tuple[str, Tensor]] = []

    def collect(value: Any, name: str) -> None:
        if isinstance(value, Tensor) and not re.fullmatch(BESIDE, name):
            found.append((name.removeprefix("state_dict.").removeprefix("module."), value.detach()))
        for key, each in value.items() if isinstance(value, dict) else ():
            collect(each, f"{name}.{key}" if name else str(key))

    collect(content, "")
    return found


def used(path: Path, spelled: Callable[[Mapping[str, int]], Mapping[str, int]], whole_unet: bool = False) -> State:
    """The file's tensors by diffusers' names, none of which it may give twice with unlike values."""
    given = tensors_in(path)
    whole_unet = whole_unet and "conv_in.weight" in dict(given)
    found: State = {}
    for name, tensor in given:
        if whole_unet and "motion_modules." not in name and re.match(IMAGE_MODEL, name):
            continue
        known = next(iter(spelled({name: 0})), name)
        assert torch.equal(found.setdefault(known, tensor).float(), tensor.float()), f"{known} is there twice"
    return found


def unlike(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that are not the same bits."""
    differ = [name for name in found.keys() & expected.keys() if not torch.equal(found[name], expected[name])]
    return [*found.keys() ^ expected.keys(), *differ]


def finite(state: Mapping[str, Tensor]) -> bool:
    return all(torch.isfinite(tensor).all() for tensor in state.values())


class Bench:
    """The models that files are loaded into, as they were; sound files; and a folder to damage copies in."""

    def __init__(self, pipeline: Any, reference: Path, folder: Path) -> None:
        self.pipeline, self.reference = pipeline, reference
        self.sound, self.scratch = folder / "sound", folder / "scratch"
        write_sound_files(self.sound, pipeline)
        self.motion_names = set(names.motion_module(names.POCKET, 32, layers=1))
        self.module = load_motion_module(self.sound / "motion.safetensors")[0].state_dict()
        video = insert_motion_module(pipeline.unet, load_motion_module(self.sound / "motion.safetensors")[0])
        self.unets: dict[str, nn.Module] = {"domain-adapter": pipeline.unet, "motion-lora": video}
        self.before = {kind: copy.deepcopy(unet.state_dict()) for kind, unet in self.unets.items()}
        self.text_before = copy.deepcopy(pipeline.text_encoder.state_dict())

    def copy_of(self, seed_file: str) -> Path:
        """A fresh copy of a sound file or folder."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()
        source, target = self.sound / seed_file, self.scratch / seed_file
        shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)
        return target


def write_sound_files(folder: Path, pipeline: Any) -> None:
    """One of each kind and format, as their programs write them; ours carry the hash of their tensors."""
    motion = names.original("motion-module", torch.float16)
    write_weights(folder / "motion.safetensors", motion, names.POCKET_METADATA)
    import_original(folder / "motion.safetensors", folder / "motion")
    without = {f"module.{name}": tensor for name, tensor in motion.items() if not name.endswith(".pe")}
    for file, zipped in (("motion.ckpt", True), ("motion.pt", False)):
        content = {"epoch": 3, "global_step": 100, "state_dict": dict(without)}
        torch.save(content, folder / file, _use_new_zipfile_serialization=zipped)
    for kind in ("domain-adapter", "motion-lora"):
        write_weights(folder / f"{kind}.safetensors", names.original(kind, torch.float16), {})
        import_original(folder / f"{kind}.safetensors", folder / f"{kind}-diffusers.safetensors")
    layers = {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": ((4, 32), (32, 4)),
        "lora_unet_mid_block_attentions_0_proj_in": ((4, 96, 1, 1), (96, 4, 1, 1)),
        "lora_unet_down_blocks_1_resnets_0_conv2": ((4, 64, 3, 3), (64, 4, 1, 1)),
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj": ((4, 128), (128, 4)),
    }
    shapes = {f"{layer}.lora_down.weight": down for layer, (down, _) in layers.items()}
    shapes |= {f"{layer}.lora_up.weight": up for layer, (_, up) in layers.items()}
    kohya = names.filled(shapes) | {f"{layer}.alpha": torch.tensor(2.0) for layer in layers}
    write_weights(folder / "kohya.safetensors", kohya, {"ss_network_dim": "4"})
    word = names.filled({"emb_params": (3, 128)})["emb_params"]
    write_weights(folder / "my-word.safetensors", {"emb_params": word}, {})
    a1111 = {"string_to_token": {"*": 265}, "string_to_param": {"*": word}, "name": "my-word", "step": 7}
    torch.save(a1111, folder / "my-word.pt")
    save_single_file(pipeline, folder / "checkpoint.safetensors")
