"""Videos fetched from the addresses of a table; imports infra only."""
