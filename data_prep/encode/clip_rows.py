"""Rows of a latent cache from decoded and encoded clips. F frames, C channels, h w latents, L D of a caption."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from data_prep.encode.encode import CaptionEncoder, Latents
    from data_prep.encode.tasks import VideoTask
    from data_prep.video.decode import DecodedClip

MEASURED = ("cuts", "flow", "shake", "brightness", "phash", "text_share", "watermark_share", "caption_match")


def clip_name(video_id: str, shot: int | None) -> str:
    """A clip is named as its video is, and where videos are split at cuts after its shot too."""
    return video_id if shot is None else f"{video_id}#{shot:03d}"


def cache_row(
    clip_id: str, video: VideoTask, content_sha256: str, clip: DecodedClip, latents: Latents, shot_type: str
) -> dict[str, Any]:
    """A row of `rows.CACHE_SCHEMA`; the caption's embedding is added when the shard's captions are known."""
    data = np.ascontiguousarray(latents.mean).tobytes()
    return {
        "clip_id": clip_id,
        "video_id": video.video_id,
        "caption": video.caption,
        "source": video.source,
        "content_sha256": content_sha256,
        "decoder": clip.decoder,
        "source_fps": clip.source_fps,
        "source_frames": clip.source_frames,
        "source_width": clip.source_width,
        "source_height": clip.source_height,
        "duration": clip.duration,
        "fps": clip.fps,
        "source_indices": clip.source_indices,
        "crop": clip.crop,
        "shot_type": shot_type,
        "motion": clip.motion,
        **{name: clip.measures.get(name) for name in MEASURED},
        "latents": data,
        "latents_shape": list(latents.mean.shape),
        "latents_sha256": hashlib.sha256(data).hexdigest(),
        "logvar": None if latents.logvar is None else np.ascontiguousarray(latents.logvar).tobytes(),
        "caption_embedding": None,
        "caption_embedding_shape": None,
    }


def add_embeddings(rows: list[dict[str, Any]], encoder: CaptionEncoder | None) -> None:
    """Embeds each caption of the rows, once."""
    if encoder is None or not rows:
        return
    captions = sorted({row["caption"] for row in rows})
    embeddings_NLD = dict(zip(captions, encoder(captions), strict=True))
    for row in rows:
        embedding_LD = embeddings_NLD[row["caption"]]
        row["caption_embedding"] = np.ascontiguousarray(embedding_LD).tobytes()
        row["caption_embedding_shape"] = list(embedding_LD.shape)
