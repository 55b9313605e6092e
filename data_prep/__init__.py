"""Videos to latents: sources, checks, decoding, encoding, the latent cache."""
