"""Frames of clips out of video files; imports problems, sources, filters and config."""
