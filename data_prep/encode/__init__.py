"""Frames to latents in shards, on Ray Data; imports video, cache, filters, sources and the config."""
