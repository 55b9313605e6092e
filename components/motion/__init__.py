"""The motion module: its network, its presets and its files; imports files."""
