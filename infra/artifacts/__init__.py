"""Artifacts on disk: their locks, drafts and records; imports the files of infra only."""
