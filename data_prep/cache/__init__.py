"""The finished latent cache: its shards, its rows, and reading it for training; imports components and infra."""
