"""The command line, a file a subject. A module here imports nothing heavy until a command runs."""
