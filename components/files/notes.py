"""What every weight file that we write says about itself: our notes, and the fields that UIs show.

Notes (`animateflow.*`): stage, preset, network, group_norm, image_group_norm, max_frames, heads, norm_groups, rank,
alpha, beta_schedule, prediction_type, base_model with its fingerprint, recipe_fingerprint, frames. The `modelspec.*`
fields are those of the Stability AI Model Metadata Standard 1.0.0; its date is left out, so that the same training
gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

from components.files.weight_files import METADATA_PREFIX

OFFICIAL = "https://github.com/guoyww/AnimateDiff"


def metadata_for(notes: Mapping[str, object], original: bool) -> dict[str, str]:
    """The metadata of a file with these notes, in the original format or in diffusers'.

    `notes["stage"]` is the kind of weights; a note that is None is left out.
    """
    given = {name: str(value) for name, value in notes.items() if value is not None}
    return {METADATA_PREFIX + name: value for name, value in given.items()} | {
        f"modelspec.{name}": value for name, value in _modelspec(given, original).items()
    }


def _modelspec(notes: Mapping[str, str], original: bool) -> dict[str, str]:
    kind, preset = notes["stage"], notes.get("preset")
    release = f"AnimateDiff {preset}" if preset and preset != "from-base" else "AnimateDiff"
    family = release.lower().replace(" ", "-")
    base = notes.get("base_model", "its base model")
    architecture, title, hint = {
        "motion-module": (
            family,
            f"{release} motion module",
            f"Insert into Stable Diffusion models; windows of up to {notes.get('max_frames', '?')} frames.",
        ),
        "motion-lora": (
            f"{family}-lora",
            f"MotionLoRA for {release}, rank {notes.get('rank', '?')}",
            f"Use with the motion module it was trained on ({release}), at a strength of about 1.",
        ),
        "domain-adapter": (
            "stable-diffusion-v1-lora",
            f"{release} domain adapter, rank {notes.get('rank', '?')}",
            "Holds the look of the training footage: leave it out, or use a low strength, for personalised models.",
        ),
    }[kind]
    trained = f"Trained on {base} with animateflow" if "base_model" in notes else "Written by animateflow"
    return {
        "sai_model_spec": "1.0.0",
        "architecture": architecture,
        "implementation": OFFICIAL if original else "diffusers",
        "title": title,
        "description": f"{trained}: " + ", ".join(f"{name} {notes[name]}" for name in _SHOWN if name in notes) + ".",
        "usage_hint": hint,
        "prediction_type": notes.get("prediction_type", "epsilon"),
    }


_SHOWN = (
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
