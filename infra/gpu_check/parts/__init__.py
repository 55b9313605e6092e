"""The checks, one subject a file, run by a worker process; imports rows, sizes, machine and context."""
