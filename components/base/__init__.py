"""The text-to-image model, plain or personalised, and its text encoder; imports files, lora and diffusion."""
