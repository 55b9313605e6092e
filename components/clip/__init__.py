"""CLIP models of open_clip as encoders; imports files."""
