"""Damaged and forged weight files: every one is refused with our error, or read whole; never a crash, never a part.

*Whole* is judged from the mutated file itself, read by safetensors or torch and by no code of ours but the table of
names: every tensor in it is in the model, with its values, and the model has nothing else that it should have from it.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
import shutil
import signal
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from components import lora
from components.base_files import PREFIXES, check_single_file
from components.base_model import BaseModel, load_base
from components.embeddings import add_embedding
from components.formats import export_original, import_original
from components.kohya import fold_lora
from components.lora_stack import LoraStack
from components.motion_files import WEIGHTS, load_motion_module
from components.motion_module import insert
from components.names import DIFFUSERS_PE, lora_to_diffusers, motion_from_original
from components.weight_files import read_header, write_weights
from components.weight_info import describe
from infra.errors import UserError
from infra.pocket.personalised import save_single_file
from tests.components import original_names as names
from tests.components import weight_mutations as mutations

SECONDS_MAX, MEGABYTES_MAX = 5.0, 500
POCKET = (32, 64, 96)
NOTES = {"animateflow.heads": "4,8,8", "animateflow.norm_groups": "16", "animateflow.preset": "from-base"}
# What may lie beside weights and is no weight: the official trainer's counters, and the image model around its module.
BESIDE = r"(state_dict\.)?(module\.)?(animatediff_config|epoch|global_step)(\..*)?"
IMAGE_MODEL = r"(down_blocks|mid_block|up_blocks|conv_in|conv_out|conv_norm_out|time_embedding)\."
PEFT = "lora_adapter_metadata"
UNUSED = ("position_ids", "logit_scale", "text_projection", "text_projection.weight")

State = dict[str, Tensor]
Read = Callable[["Bench", Path], State]


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
        self.motion_names = set(names.motion_module(POCKET, 32, layers=1))
        self.module = load_motion_module(self.sound / "motion.safetensors")[0].state_dict()
        video = insert(pipeline.unet, load_motion_module(self.sound / "motion.safetensors")[0])
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
    motion = names.filled(names.motion_module(POCKET, 32, layers=1), torch.float16)
    write_weights(folder / "motion.safetensors", motion, NOTES)
    import_original(folder / "motion.safetensors", folder / "motion")
    without = {f"module.{name}": tensor for name, tensor in motion.items() if not name.endswith(".pe")}
    for file, zipped in (("motion.ckpt", True), ("motion.pt", False)):
        content = {"epoch": 3, "global_step": 100, "state_dict": dict(without)}
        torch.save(content, folder / file, _use_new_zipfile_serialization=zipped)
    for kind, shapes in (
        ("domain-adapter", names.domain_adapter(POCKET, 128, 4, layers=1)),
        ("motion-lora", names.motion_lora(POCKET, 4, layers=1)),
    ):
        write_weights(folder / f"{kind}.safetensors", names.filled(shapes, torch.float16), {})
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


# Readers: each loads the file at a path into a copy of its model, and sees that this is the whole file.


def read_motion_module(bench: Bench, path: Path) -> State:
    found = load_motion_module(path)[0].state_dict()
    file = path / WEIGHTS if path.is_dir() else path
    given = used(file, motion_from_original, whole_unet=path.is_file())
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
        layers = {name for name, _ in unet.named_modules() if re.fullmatch(lora.LAYERS[kind], name)}
        assert weights.layers == layers
        factor = peft_factor(path, weights.rank)
        deltas = {}
        for layer in layers:
            down, up = (given[f"unet.{layer}.lora_{side}.weight"] for side in "AB")
            assert torch.equal(weights.pair(layer)[0], down)
            assert weights.pair(layer)[1].any() or not up.any(), f"{layer} is not touched"
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
        fold_lora(unet, text_encoder, path, 1.0)
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
        word = add_embedding(pipeline, path)
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
        Reader("motion", read_motion_module, 8, (WEIGHTS, "config.json")),
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
    for make in (export_original, import_original):
        if loaded is None or convert in ("both", make.__name__):
            check_conversion(bench, reader, path, make, loaded)
    assert not (path.parent / mutations.MARK).exists(), "a pickle was run"
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
        assert kind in lora.LAYERS
        assert not unlike(lora.load(target, kind).state, lora.load(path, kind).state)
        return
    assert not unlike(reader.read(bench, target), loaded)
    if make is export_original and reader.read is read_motion_module:
        assert load_file(target).keys() == bench.motion_names


@pytest.fixture(scope="module")
def bench(base: BaseModel, base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(load_base(base), base_folder, tmp_path_factory.mktemp("fuzz"))


def damaged(bench: Bench, reader: Reader, draw: mutations.Draw) -> Path:
    path = bench.copy_of(reader.name)
    part = path / draw(st.sampled_from(reader.damaged))
    (mutations.damage_config if part.name == "config.json" else mutations.mutate)(draw, part)
    return path


def run(bench: Bench, reader: Reader, examples: int, number: int) -> Counter[str]:
    counts: Counter[str] = Counter()

    @seed(zlib.crc32(reader.name.encode()) + number)
    @settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )  # fmt: skip
    @given(st.data())
    def tried(data: st.DataObject) -> None:
        path = damaged(bench, reader, data.draw)
        convert = data.draw(st.sampled_from(("neither", "neither", "export_original", "import_original")))
        counts[outcome(bench, reader, path, convert)] += 1

    tried()
    print(f"\n{reader.name}: {dict(counts)}")
    return counts


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_refused_or_read_whole(name: str, bench: Bench) -> None:
    counts = run(bench, READERS[name], READERS[name].examples, 0)
    assert counts["refused"] > READERS[name].examples / 4


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", READERS)
def test_twenty_times_as_many_are_refused_or_read_whole(name: str, bench: Bench) -> None:
    examples = 20 * READERS[name].examples
    counts = run(bench, READERS[name], examples, 1)
    assert counts["refused"] > examples / 4
    assert counts["whole"] > examples / 20


@pytest.mark.parametrize("name", READERS)
def test_sound_files_are_read_whole(name: str, bench: Bench) -> None:
    assert outcome(bench, READERS[name], bench.copy_of(name)) == "whole"


# Of each class of mutation a few, for the reader.

Damage = Callable[[Path], object]
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


def raw(change: Callable[[bytes], bytes]) -> Damage:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def text(change: Callable[[bytes], bytes]) -> Damage:
    """Of a safetensors header, whose length is made to fit."""

    def damage(path: Path) -> None:
        header, data = mutations.split(path)
        mutations.join(path, change(header), data)

    return damage


def entry(name: str, **change: Any) -> Damage:
    def damage(header: bytes) -> bytes:
        found = json.loads(header)
        found[name] |= change
        return json.dumps(found).encode()

    return text(damage)


def note(name: str, value: Any) -> Damage:
    return entry(mutations.METADATA, **{name: value})


def tensors(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Of a file that is valid again: its table of tensors, in a pickle the innermost dict."""

    def damage(path: Path) -> None:
        held, write, _ = mutations.opened(path)
        change(held)
        write()

    return damage


def put(**given: Any) -> Damage:
    return tensors(lambda held: held.update(given))


def without(*endings: str) -> Damage:
    return tensors(lambda held: [held.pop(name) for name in list(held) if name.endswith(endings)])


def every(change: Callable[[Tensor], Any]) -> Damage:
    return tensors(lambda held: held.update({name: change(tensor) for name, tensor in held.items()}))


def both(*damages: Damage) -> Damage:
    return lambda path: [damage(path) for damage in damages]


def config(**change: Any) -> Damage:
    def damage(path: Path) -> None:
        file = path / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))

    return damage


def packed(path: Path) -> None:
    """The table of a zip with 400 MB of zeros behind it, half a megabyte on the disk."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, value in members.items():
            with archive.open(name, "w") as member:
                member.write(value)
                for _ in range(400 if name.endswith("data.pkl") else 0):
                    member.write(bytes(2**20))


def many_names(header: bytes) -> bytes:
    """The last of them a second time."""
    return b"{" + b"".join(b'"%d":1,' % i for i in range(60_000)) + b'"59999":1,' + header[1:]


def empty_entry(header: bytes) -> bytes:
    """No bytes, and sides of which each is possible and whose strides no integer holds."""
    entry = {"dtype": "F32", "shape": [0, 2**40, 2**40, 2**40], "data_offsets": [0, 0]}
    return json.dumps({"model.diffusion_model.x": entry}).encode()[:-1] + b"," + header[1:]


def share(held: dict[str, Any]) -> None:
    """800 MB of tensors in a file of 4 MB."""
    one = torch.ones(10**6)
    held.update((str(i), one) for i in range(200))


def name_by_numbers(held: dict[Any, Any]) -> None:
    """A key whose text is all numbers of a tensor."""
    numbers = torch.ones(10**6)
    held[torch.storage.TypedStorage(wrap_storage=numbers.untyped_storage(), dtype=numbers.dtype, _internal=True)] = 1


REFUSED: dict[str, list[tuple[str, Damage, str]]] = {
    "bytes": [
        (MOTION, raw(lambda raw: raw[:-1]), "cut short"),
        (MOTION, raw(lambda raw: raw[len(raw) // 2 :] + raw[: len(raw) // 2]), "fit no weight format"),
        (MOTION, raw(lambda raw: raw[:-9] + b"\xff" * 9), "enormous"),
        ("motion.ckpt", raw(lambda raw: raw[: len(raw) // 2]), "cannot be read safely"),
        ("motion.pt", raw(lambda raw: raw[:300] + bytes(300) + raw[600:]), "cannot be read safely"),
    ],
    "length": [
        (MOTION, raw(lambda raw: bytes(8) + raw[8:]), "not JSON"),
        (MOTION, raw(lambda raw: (10**8).to_bytes(8, "little") + raw[8:]), "cut short"),
    ],
    "text": [
        (MOTION, text(lambda header: header.decode().encode("utf-16-le")), "not JSON"),
        (MOTION, text(lambda header: header.replace(b"[32]", b"[" + b"9" * 5000 + b"]", 1)), "not JSON"),
        (MOTION, text(lambda header: header.replace(b"[32]", b"[1e999]", 1)), "has the shape"),
        (MOTION, text(lambda header: header.replace(b'norm.bias"', b'norm.\\ud800"', 1)), "is no name"),
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
        (MOTION, note("x", "\ud800"), "metadata are not texts"),
        (MOTION, note("animateflow.heads", "5"), r"heads \[5, 5, 5\]"),
        (MOTION, note("animateflow.norm_groups", "9" * 5000), "no motion module has"),
        (MOTION, both(without(".pe"), note("animateflow.max_frames", "100000")), "100000 positions"),
        (LORA, note(PEFT, "[" * 100_000), "settings that cannot be read"),
        (LORA, note(PEFT, '{"r": 4, "lora_alpha": 1%s}' % ("0" * 400)), "settings that cannot be read"),
        (LORA, note(PEFT, '{"r": 4, "lora_alpha": 1e-300}'), "trained with"),
        (LORA, note(PEFT, '{"r": 1, "lora_alpha": 4}'), "trained with"),
    ],
    "tensors": [
        (MOTION, put(**{NORM: torch.full((32,), 1e300, dtype=torch.float64)}), "enormous"),
        (MOTION, put(**{NORM_DIFFUSERS: torch.ones(32)}), "is unknown"),
        ("motion.ckpt", put(**{NORM_DIFFUSERS: torch.ones(32)}), "is unknown"),
        (MOTION, put(**{POSITIONS % 1: torch.ones(1, 32, 32)}), "unlike positions"),
        (MOTION, without(POSITIONS % 0, POSITIONS % 1), "pos_embed.pe is missing"),
        (MOTION, put(**{f"{TO_Q}.alpha": torch.tensor(4.0)}), "is a LoRA of an image model"),
        (ADAPTER, without("blocks.0.attn1.processor.to_q_lora.up.weight"), "missing or unknown"),
        (ADAPTER, without("attn1.processor.to_q_lora.up.weight", "attn1.processor.to_q_lora.down.weight"), "no weight"),
        (ADAPTER, put(**{"x.lora_A.weight": torch.tensor(1.0)}), "missing or unknown"),
        (ADAPTER, every(lambda tensor: tensor.float() * 1e25), "enormous"),
        (LORA, put(**{f"{AT}transformer_blocks.0.attn1.to_q.lora_A.weight": torch.ones(4, 32)}), "missing or unknown"),
        (KOHYA, put(**{f"{TO_Q}.lora_down.weight": torch.ones(1, 20_000),
                       f"{TO_Q}.lora_up.weight": torch.ones(20_000, 1)}), "20000"),
        (KOHYA, both(put(**{f"{TO_Q}.lora_down.weight": torch.tensor(1.0)}), without(f"{TO_Q}.alpha")), "no product"),
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
            (lambda path: put(x=mutations.Malicious(path.with_name(mutations.MARK)))(path), "cannot be read safely"),
            (put(x=torch.zeros(1).expand(10**12)), "not a plain tensor"),
            (put(x=torch.zeros(3).to_sparse()), "not a plain tensor"),
            (put(x=torch.empty(10**9, device="meta")), "not a plain tensor"),
            (put(x=mutations.circle()), "in a circle"),
            (put(x=mutations.laughs()), "in a circle"),
            (put(x=mutations.laughs(depth=2, width=5000)), "in a circle"),
            (tensors(name_by_numbers), "for a name"),
            (put(x={"y": torch.ones(1)}, **{"x.y": torch.ones(2)}), "twice"),
            (put(**{"\ud800": torch.ones(1)}), "is no name"),
            (tensors(share), "by their names"),
            (every(lambda tensor: [tensor]), "without tensors"),
        )
    ] + [("motion.ckpt", packed, "compressed")],
    "config": [
        ("motion", config(motion_norm_num_groups=math.inf), "no motion module has"),
        ("motion", config(motion_num_attention_heads=[math.inf, 8, 8]), "no motion module has"),
        ("motion", config(block_out_channels=[32, 64]), "block_out_channels"),
        ("motion", lambda path: put(**UNET)(path / WEIGHTS), "beside the temporal layers"),
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


@pytest.mark.parametrize("what", [*mutations.FILES, *mutations.PLACES])
@pytest.mark.parametrize("file", [MOTION, "motion.ckpt", KOHYA, "my-word.pt", CHECKPOINT])
def test_what_is_no_weight_file_is_refused_under_any_name(file: str, what: str, bench: Bench) -> None:
    path = bench.copy_of(file)
    mutations.replace_file(lambda choice: what, path)
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
        with pytest.raises(UserError, match="its maker noted"):
            describe(path, hashes=True)


def test_a_header_that_begins_as_pickles_do_is_a_header(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(3)}
    for length in range(100, 400):
        save_file(tensors, tmp_path / "a.ckpt", {"x": "x" * length})
        if (tmp_path / "a.ckpt").read_bytes()[0] == 0x80:
            break
    assert read_header(tmp_path / "a.ckpt").shapes == {"a": (3,)}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (raw(lambda raw: raw[:-1]), "cut short"),
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
