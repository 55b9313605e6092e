"""What is put on a base model: Kohya LoRAs and textual-inversion embeddings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from components.base.model import BaseModel, EmbeddingFile, LoraFile, load_base
from infra.errors import UserError

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
    assert "is an SDXL LoRA, not a LoRA of an image model" in refused(with_lora("xl.safetensors"))
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
    assert "is an SDXL textual-inversion embedding" in with_embedding(both)
    assert "is in the tokenizer already" in with_embedding({"emb_params": torch.zeros(2, 128)}, "red")
    assert "not as floating-point" in with_embedding({"emb_params": torch.zeros(2, 128, dtype=torch.int32)})
    assert "file of unknown kind" in with_embedding({"a.b": torch.zeros(2)})
