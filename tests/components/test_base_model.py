from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from components.base_model import BaseModel, EmbeddingFile, LoraFile, fingerprint_of, load_base, vae_sha256
from infra.errors import UserError
from infra.pocket.personalised import save_single_file

UNET_LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CONV_LAYER = "mid_block.attentions.0.proj_in"
TEXT_LAYER = "encoder.layers.0.self_attn.q_proj"


def refused(model: BaseModel) -> str:
    with pytest.raises(UserError) as caught:
        load_base(model)
    assert caught.value.exit_code == 2
    return str(caught.value)


def kohya(path: Path, **extra: torch.Tensor) -> dict[str, torch.Tensor]:
    """A LoRA of rank 4 and alpha 2 on a linear layer, a 1x1 convolution and the text encoder."""
    generator = torch.Generator().manual_seed(0)
    keys = {
        "lora_unet_" + UNET_LAYER.replace(".", "_"): ((4, 32), (32, 4)),
        "lora_unet_" + CONV_LAYER.replace(".", "_"): ((4, 96, 1, 1), (96, 4, 1, 1)),
        "lora_te_text_model_" + TEXT_LAYER.replace(".", "_"): ((4, 128), (128, 4)),
    }
    tensors: dict[str, torch.Tensor] = {}
    for key, (down, up) in keys.items():
        tensors[f"{key}.lora_down.weight"] = torch.randn(down, generator=generator)
        tensors[f"{key}.lora_up.weight"] = torch.randn(up, generator=generator)
        tensors[f"{key}.alpha"] = torch.tensor(2.0)
    tensors |= extra
    save_file(tensors, path)
    return tensors


def test_a_folder_is_loaded_in_fp32_frozen(base: BaseModel, base_folder: Path) -> None:
    pipeline = load_base(base)
    expected = load_file(base_folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(pipeline.unet.state_dict()[name], tensor) for name, tensor in expected.items())
    assert pipeline.safety_checker is None
    assert not any(parameter.requires_grad for parameter in pipeline.unet.parameters())


def test_a_single_file_holds_the_same_model(base: BaseModel, base_folder: Path, tmp_path: Path) -> None:
    plain = load_base(base)
    save_single_file(plain, tmp_path / "ink.safetensors")
    single = load_base(BaseModel(path=tmp_path / "ink.safetensors", reference=base_folder))
    for part in ("unet", "vae", "text_encoder"):
        expected, found = getattr(plain, part).state_dict(), getattr(single, part).state_dict()
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], tensor.half().float()) for name, tensor in expected.items()), part
    assert vae_sha256(single.vae) == vae_sha256(plain.vae)
    assert single.tokenizer("a red circle")["input_ids"] == plain.tokenizer("a red circle")["input_ids"]
    assert single.scheduler.config.beta_schedule == "linear"


def test_the_vae_s_hash_is_of_its_weights(pipeline: Any) -> None:
    before = vae_sha256(pipeline.vae)
    assert vae_sha256(pipeline.vae.half().float()) == before
    with torch.no_grad():
        next(pipeline.vae.parameters())[0] += 0.1
    assert vae_sha256(pipeline.vae) != before


def test_a_kohya_lora_is_w_plus_scale_alpha_over_rank_up_down(
    base: BaseModel, base_folder: Path, tmp_path: Path
) -> None:
    tensors = kohya(tmp_path / "neon.safetensors")
    plain = load_base(base)
    lora = LoraFile(path=tmp_path / "neon.safetensors", scale=0.5)
    given = load_base(BaseModel(path=base_folder, loras=(lora,)))
    for module, layer, prefix in (
        ("unet", UNET_LAYER, "lora_unet_"),
        ("unet", CONV_LAYER, "lora_unet_"),
        ("text_encoder", TEXT_LAYER, "lora_te_text_model_"),
    ):
        key = prefix + layer.replace(".", "_")
        down, up = (tensors[f"{key}.lora_{side}.weight"].flatten(1) for side in ("down", "up"))
        before = getattr(plain, module).get_submodule(layer).weight
        expected = before + (0.5 * 2 / 4 * up @ down).view_as(before)
        assert torch.allclose(getattr(given, module).get_submodule(layer).weight, expected, atol=1e-5)
    # Folded in: the modules are those of a model without LoRAs, so that others can be put on.
    assert given.unet.state_dict().keys() == plain.unet.state_dict().keys()
    assert given.text_encoder.state_dict().keys() == plain.text_encoder.state_dict().keys()
    others = [name for name in plain.unet.state_dict() if UNET_LAYER not in name and CONV_LAYER not in name]
    assert all(torch.equal(given.unet.state_dict()[name], plain.unet.state_dict()[name]) for name in others)


def test_in_the_unet_it_is_what_diffusers_makes_of_it(base: BaseModel, base_folder: Path, tmp_path: Path) -> None:
    tensors = kohya(tmp_path / "neon.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if "_te_" not in name}, tmp_path / "neon.safetensors")
    theirs = load_base(base)
    theirs.load_lora_weights(tmp_path, weight_name="neon.safetensors")
    theirs.fuse_lora(components=["unet"], lora_scale=0.8)
    theirs.unload_lora_weights()
    lora = LoraFile(path=tmp_path / "neon.safetensors", scale=0.8)
    found = load_base(BaseModel(path=base_folder, loras=(lora,))).unet.state_dict()
    assert all(torch.allclose(found[name], tensor, atol=1e-5) for name, tensor in theirs.unet.state_dict().items())


def test_two_loras_add_up(base: BaseModel, base_folder: Path, tmp_path: Path) -> None:
    kohya(tmp_path / "one.safetensors")
    once, twice = (
        load_base(BaseModel(path=base_folder, loras=(LoraFile(path=tmp_path / "one.safetensors"),) * count))
        for count in (1, 2)
    )
    weight = [pipe.unet.get_submodule(UNET_LAYER).weight for pipe in (load_base(base), once, twice)]
    assert torch.allclose(weight[2] - weight[0], 2 * (weight[1] - weight[0]), atol=1e-5)


def test_loras_that_do_not_fit_are_refused(base_folder: Path, tmp_path: Path) -> None:
    def with_lora(name: str) -> BaseModel:
        return BaseModel(path=base_folder, loras=(LoraFile(path=tmp_path / name),))

    key = "lora_unet_" + UNET_LAYER.replace(".", "_")
    save_file({f"{key}.hada_w1_a": torch.zeros(4, 4)}, tmp_path / "loha.safetensors")
    assert "LyCORIS" in refused(with_lora("loha.safetensors"))
    kohya(tmp_path / "dora.safetensors", **{f"{key}.dora_scale": torch.zeros(32)})
    assert "is a DoRA" in refused(with_lora("dora.safetensors"))
    save_file(
        {f"{key}.lora_down.weight": torch.zeros(4, 320), f"{key}.lora_up.weight": torch.zeros(320, 4)},
        tmp_path / "sd15.safetensors",
    )
    assert "does not fit the base model" in refused(with_lora("sd15.safetensors"))
    narrow = {f"{key}.lora_down.weight": torch.zeros(4, 32), f"{key}.lora_up.weight": torch.zeros(16, 4)}
    save_file(narrow, tmp_path / "narrow.safetensors")
    assert "is (16, 32) and the model's is (32, 32)" in refused(with_lora("narrow.safetensors"))
    cross = key.replace("attn1_to_q", "attn2_to_k")
    of_sdxl = {f"{cross}.lora_down.weight": torch.zeros(4, 2048), f"{cross}.lora_up.weight": torch.zeros(640, 4)}
    save_file(of_sdxl, tmp_path / "xl.safetensors")
    assert "is a LoRA of SDXL, not a LoRA of an image model" in refused(with_lora("xl.safetensors"))
    assert "fit no SD 1.x model" in refused(with_lora("xl.safetensors"))
    kohya(tmp_path / "mid.safetensors", **{f"{key}.lora_mid.weight": torch.zeros(4, 4, 3, 3)})
    assert "is a LoCon with lora_mid" in refused(with_lora("mid.safetensors"))
    save_file({f"{key}.lokr_w1": torch.zeros(4, 4)}, tmp_path / "lokr.safetensors")
    assert "is a LoKr" in refused(with_lora("lokr.safetensors"))
    elsewhere = key.replace("down_blocks_0", "down_blocks_7")
    kohya(
        tmp_path / "deeper.safetensors",
        **{f"{elsewhere}.lora_down.weight": torch.zeros(4, 32), f"{elsewhere}.lora_up.weight": torch.zeros(32, 4)},
    )
    assert "Of the 4 layers" in refused(with_lora("deeper.safetensors"))
    assert "does not exist" in refused(with_lora("nowhere.safetensors"))


def test_what_is_not_a_base_model_is_named(trained: dict[str, Path], tmp_path: Path) -> None:
    assert "does not exist" in refused(BaseModel(path=tmp_path / "nowhere"))
    assert "has no model_index.json" in refused(BaseModel(path=tmp_path))
    assert "is a motion-module" in refused(BaseModel(path=trained["motion-module"]))
    lora = trained["motion-lora"] / "motion_lora.safetensors"
    assert "is a MotionLoRA" in refused(BaseModel(path=lora))
    (tmp_path / "page.safetensors").write_text("<html>please log in</html>")
    assert "is a web page" in refused(BaseModel(path=tmp_path / "page.safetensors"))
    (tmp_path / "old.ckpt").write_bytes(b"PK\x03\x04")
    assert "is a pickle that cannot be read safely" in refused(BaseModel(path=tmp_path / "old.ckpt"))


def test_models_of_other_kinds_are_refused(base_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(base_folder, tmp_path / "xl")
    index = tmp_path / "xl" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "StableDiffusionXLPipeline"}))
    assert "is a model for StableDiffusionXLPipeline" in refused(BaseModel(path=tmp_path / "xl"))
    shutil.copytree(base_folder, tmp_path / "v")
    scheduler = tmp_path / "v" / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"prediction_type": "sample"}))
    assert "predicts sample. Only models that predict noise" in refused(BaseModel(path=tmp_path / "v"))
    for name, changes, says in (
        ("inpainting", {"in_channels": 9}, "has a UNet with 9 input channels. That is an inpainting"),
        ("two", {"cross_attention_dim": 1024}, "is a whole Stable Diffusion 2 model (text of width 1024)"),
    ):
        shutil.copytree(base_folder, tmp_path / name)
        unet = tmp_path / name / "unet" / "config.json"
        unet.write_text(json.dumps(json.loads(unet.read_text()) | changes))
        assert says in refused(BaseModel(path=tmp_path / name))
    shutil.copytree(base_folder, tmp_path / "part")
    (tmp_path / "part" / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert "could not be loaded as a base model" in refused(BaseModel(path=tmp_path / "part"))


def test_a_hub_model_without_network_fails_fast(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    started = time.monotonic()
    assert "no network for a hub model" in refused(BaseModel(path=Path("nobody/such-a-model")))
    save_single_file(load_base(base), tmp_path / "ink.safetensors")
    message = refused(BaseModel(path=tmp_path / "ink.safetensors"))
    assert "hf download stable-diffusion-v1-5/stable-diffusion-v1-5" in message
    assert "reference" in message
    assert time.monotonic() - started < 20


def test_the_fingerprint_is_of_content(base: BaseModel, base_folder: Path, tmp_path: Path) -> None:
    kohya(tmp_path / "neon.safetensors")
    shutil.copytree(base_folder, tmp_path / "tiny")
    assert fingerprint_of(BaseModel(path=tmp_path / "tiny")) == fingerprint_of(base)
    strengths = [
        fingerprint_of(BaseModel(path=base_folder, loras=(LoraFile(path=tmp_path / "neon.safetensors", scale=scale),)))
        for scale in (0.5, 1.0)
    ]
    assert len({*(given.fingerprint for given in strengths), fingerprint_of(base).fingerprint}) == 3


FIRST = "model.diffusion_model.input_blocks.0.0.weight"
CROSS = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


@pytest.mark.parametrize(
    ("shapes", "says", "then"),
    [
        ({FIRST: (32, 9, 3, 3)}, "is a whole inpainting model", "takes a mask and a masked picture"),
        ({FIRST: (32, 4, 3, 3), CROSS: (32, 1024)}, "is a whole Stable Diffusion 2 model", "fit its sizes and not"),
        ({FIRST: (32, 4, 3, 3), CROSS: (32, 2048)}, "is a whole SDXL model", "do not fit it"),
    ],
)
def test_checkpoints_of_other_families_are_named(
    shapes: dict[str, tuple[int, ...]], says: str, then: str, tmp_path: Path, base_folder: Path
) -> None:
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "a.safetensors")
    message = refused(BaseModel(path=tmp_path / "a.safetensors", reference=base_folder))
    assert says in message
    assert then in message


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_base_model_is_whole_or_refused(part: str, base: BaseModel, base_folder: Path, tmp_path: Path) -> None:
    """diffusers loads both with a line in the log, or with a tensor that has no memory."""
    prefix = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder": "cond_stage_model."}[part]
    save_single_file(load_base(base), tmp_path / "a.safetensors")
    whole = load_file(tmp_path / "a.safetensors")
    gone = [name for name in whole if name.startswith(prefix)][7]
    broken = BaseModel(path=tmp_path / "b.safetensors", reference=base_folder)
    for tensors, says in (
        ({name: tensor for name, tensor in whole.items() if name != gone}, "is missing"),
        (
            {name: tensor for name, tensor in whole.items() if not name.startswith(prefix)},
            "is a VAE" if part == "unet" else "holds no",
        ),
        ({**whole, gone: torch.zeros(5)}, "not ("),
    ):
        save_file(tensors, tmp_path / "b.safetensors")
        assert says in refused(broken)

    shutil.copytree(base_folder, tmp_path / "folder")
    file = next((tmp_path / "folder" / part).glob("*.safetensors"))
    tensors = load_file(file)
    for changed, says in (
        (dict(list(tensors.items())[1:]), "is missing"),
        ({**tensors, "strange": torch.zeros(2)}, "strange is unknown"),
    ):
        save_file(changed, file, {"format": "pt"})
        assert says in refused(BaseModel(path=tmp_path / "folder"))
    file.write_text("<html>")
    assert "is a web page" in refused(BaseModel(path=tmp_path / "folder"))


def test_a_checkpoint_in_a_pickle_of_tensors_is_loaded(base: BaseModel, base_folder: Path, tmp_path: Path) -> None:
    save_single_file(load_base(base), tmp_path / "a.safetensors")
    torch.save({"state_dict": load_file(tmp_path / "a.safetensors"), "epoch": 1}, tmp_path / "a.ckpt")
    found, expected = (
        load_base(BaseModel(path=tmp_path / name, reference=base_folder)).unet.state_dict()
        for name in ("a.ckpt", "a.safetensors")
    )
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("form", ["a1111", "a1111-pickle", "diffusers"])
def test_an_embedding_is_a_word_for_its_vectors(form: str, base_folder: Path, tmp_path: Path) -> None:
    vectors = torch.randn(1 if form == "diffusers" else 3, 128)
    file = tmp_path / ("bad-hands.pt" if form == "a1111-pickle" else "bad-hands.safetensors")
    if form == "a1111-pickle":
        torch.save(
            {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": {"*": vectors}, "name": "x", "step": 9},
            file,
        )
    else:
        save_file({"emb_params" if form == "a1111" else "<bad-hands>": vectors}, file)
    word = "EasyZorb"  # diffusers' own loader loses all vectors but the first of a word with capitals
    pipeline = load_base(BaseModel(path=base_folder, embeddings=(EmbeddingFile(path=file, token=word),)))
    prompt = pipeline.maybe_convert_prompt(f"a {word} circle", pipeline.tokenizer)
    ids = pipeline.tokenizer(prompt)["input_ids"]
    table = pipeline.text_encoder.get_input_embeddings().weight
    assert torch.equal(table[ids[2 : 2 + len(vectors)]], vectors)
    own = load_base(BaseModel(path=base_folder, embeddings=(EmbeddingFile(path=file),))).tokenizer
    assert ("<bad-hands>" if form == "diffusers" else "bad-hands") in own.get_vocab()


def test_embeddings_that_do_not_fit_are_refused(base_folder: Path, tmp_path: Path) -> None:
    def with_embedding(tensors: dict[str, torch.Tensor], token: str | None = None) -> str:
        save_file(tensors, tmp_path / "a.safetensors")
        file = EmbeddingFile(path=tmp_path / "a.safetensors", token=token)
        return refused(BaseModel(path=base_folder, embeddings=(file,)))

    assert "trained for Stable Diffusion 1.x" in with_embedding({"emb_params": torch.zeros(2, 768)})
    both = {"clip_l": torch.zeros(1, 768), "clip_g": torch.zeros(1, 1280)}
    assert "is a textual-inversion embedding of SDXL" in with_embedding(both)
    assert "knows already" in with_embedding({"emb_params": torch.zeros(2, 128)}, "red")
    assert "not as floating-point" in with_embedding({"emb_params": torch.zeros(2, 128, dtype=torch.int32)})
    assert "file of unknown kind" in with_embedding({"a.b": torch.zeros(2)})
