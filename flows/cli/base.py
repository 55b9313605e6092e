"""`animateflow base`: what a base model can do for a motion module."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import CacheOption, DeviceOption
from infra.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Base models: which words of a caption they see.")

SEEN_ABOVE = 0.01
"""Of the error at the timestep where the gap is largest."""


@app.command()
def gap(
    base: Annotated[Path, typer.Option("--base", help="A diffusers folder, a .safetensors file or a hub id.")],
    cache: CacheOption,
    words: Annotated[
        list[str], typer.Option("--words", help="Words that exclude each other, with commas; may be repeated.")
    ],
    stills: Annotated[int, typer.Option(min=8, help="Stills to measure on, one from the middle of a clip.")] = 256,
    reference: Annotated[Path | None, typer.Option(help="The diffusers folder with a single file's configs.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file too.")] = None,
    device: DeviceOption = "auto",
) -> None:
    """Prints the caption gap: by how much a base model's error grows when a word of the caption is swapped.

    A motion module has no text input: it can follow only words whose gap is not zero. If clips do not move as their
    prompts say, look here first; docs/training.md says what to do for each answer.

    Example: `animateflow base gap --base sd15 --cache runs/cache --words left,right --words "walking,standing"`
    """
    from components.base.caption_encoder import CaptionEncoder
    from components.base.model import BaseModel, prediction_type_of
    from components.diffusion.caption_gap import caption_gap
    from components.diffusion.objective import image_predictor
    from components.stages.models import load_pipeline
    from flows.chain.steps import opened_cache
    from infra.artifacts.sealing import write_json
    from infra.runtime import pick_device

    groups = [tuple(word.strip() for word in text.split(",") if word.strip()) for text in words]
    for group in groups:
        if len(set(group)) < 2:
            raise UserError(
                f"--words {','.join(group)!r} names fewer than two words.",
                "A word is swapped for another one.",
                "Write --words left,right.",
            )
    clips, where = opened_cache(cache), pick_device(device)
    pipeline = load_pipeline(BaseModel(path=base, reference=reference), clips).to(where)
    latents, captions = clips.stills(stills)
    latents = latents.to(where) * clips.scaling_factor
    encode = CaptionEncoder(pipeline.tokenizer, pipeline.text_encoder, where)
    rows = []
    for group in groups:
        found = caption_gap(
            image_predictor(pipeline.unet),
            encode,
            latents,
            captions,
            group,
            pipeline.scheduler.alphas_cumprod.to(where),
            prediction_type_of(pipeline),
        )
        if not found:
            raise UserError(
                f"None of {len(captions)} captions has one of the words {', '.join(group)}.",
                "The gap is measured on stills whose captions have the word.",
                "Name words of the captions; `animateflow cache inspect` shows them.",
            )
        rows += [row.as_row() for row in found]
        best = max(found, key=lambda row: row.gap)
        typer.echo(f"{' / '.join(group)}   ({best.stills} stills)")
        for row in found:
            typer.echo(f"  t = {row.timestep:<4} {row.gap:+8.2%}   [{row.low:+.2%}, {row.high:+.2%}]")
        seen = best.low > SEEN_ABOVE
        typer.echo(
            "  The base model sees the difference."
            if seen
            else "  The base model does not see the difference: a motion module on it cannot follow these words."
        )
    if json_file is not None:
        write_json(json_file, {"base": str(base), "gaps": rows})


def register(main: typer.Typer) -> None:
    main.add_typer(app, name="base")
