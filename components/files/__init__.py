"""Weight files, read and written safely; imports infra only."""
