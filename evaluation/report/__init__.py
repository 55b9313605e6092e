"""One HTML page of a benchmark; imports metrics and results."""
