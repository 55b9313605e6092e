"""From weights and a prompt to frames; imports files, lora, motion, diffusion and base."""
