"""Videos to latents, on Ray Data; imports components and infra."""
