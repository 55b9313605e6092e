"""The motion module: the temporal transformer and its files; imports files."""
