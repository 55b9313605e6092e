"""The text-to-image model, plain or personalised; imports files, lora and diffusion."""
