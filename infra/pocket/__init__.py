"""The pocket world: clips, a Stable Diffusion-shaped base model and a CLIP model small enough for two CPU cores;
imports artifacts and the files of infra."""
