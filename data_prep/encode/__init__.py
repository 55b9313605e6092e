"""Frames to latents in shards, on Ray Data; imports sources, filters, config, video and cache."""
