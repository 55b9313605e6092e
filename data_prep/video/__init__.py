"""Frames of clips out of video files; imports sources, filters and the config."""
