"""The safetensors metadata of the weights that we write: `animateflow.*` fields and `modelspec.*` fields.

`animateflow.*`: stage, preset, network, group_norm, image_group_norm, max_frames, heads, norm_groups, rank, alpha,
beta_schedule, prediction_type, base_model and its fingerprint, recipe_fingerprint, frames. `modelspec.*`: the fields of
the Stability AI Model Metadata Standard 1.0.0, which UIs show. Its date is left out, so that the same training gives
the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

from components.files.weights import METADATA_PREFIX

OFFICIAL_REPOSITORY = "https://github.com/guoyww/AnimateDiff"
DESCRIBED_FIELDS = (
    "stage",
    "preset",
    "network",
    "group_norm",
    "image_group_norm",
    "rank",
    "max_frames",
    "frames",
    "beta_schedule",
)


def to_safetensors_metadata(fields: Mapping[str, object], original: bool) -> dict[str, str]:
    """The metadata of a file with these `animateflow.*` fields, given without that prefix. `original` says whether the
    file is in the original format or in diffusers'.

    `fields["stage"]` is the kind of weights. A field whose value is None is left out.
    """
    texts = {name: str(value) for name, value in fields.items() if value is not None}
    ours = {METADATA_PREFIX + name: text for name, text in texts.items()}
    return ours | {f"modelspec.{name}": text for name, text in _modelspec(texts, original).items()}


def _modelspec(fields: Mapping[str, str], original: bool) -> dict[str, str]:
    kind, preset = fields["stage"], fields.get("preset")
    release = f"AnimateDiff {preset}" if preset and preset != "from-base" else "AnimateDiff"
    family = release.lower().replace(" ", "-")
    base = fields.get("base_model", "its base model")
    architecture, title, hint = {
        "motion-module": (
            family,
            f"{release} motion module",
            f"Insert into Stable Diffusion models; windows of up to {fields.get('max_frames', '?')} frames.",
        ),
        "motion-lora": (
            f"{family}-lora",
            f"MotionLoRA for {release}, rank {fields.get('rank', '?')}",
            f"Use with the motion module it was trained on ({release}), at a strength of about 1.",
        ),
        "domain-adapter": (
            "stable-diffusion-v1-lora",
            f"{release} domain adapter, rank {fields.get('rank', '?')}",
            "Holds the look of the training footage: leave it out, or use a low strength, for personalised models.",
        ),
    }[kind]
    trained = f"Trained on {base} with animateflow" if "base_model" in fields else "Written by animateflow"
    return {
        "sai_model_spec": "1.0.0",
        "architecture": architecture,
        "implementation": OFFICIAL_REPOSITORY if original else "diffusers",
        "title": title,
        "description": f"{trained}: "
        + ", ".join(f"{name} {fields[name]}" for name in DESCRIBED_FIELDS if name in fields)
        + ".",
        "usage_hint": hint,
        "prediction_type": fields.get("prediction_type", "epsilon"),
    }
