"""Weight files: reading, checking and writing them; imports infra only."""
