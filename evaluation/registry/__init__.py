"""Which models are benchmarked, and where they come from; imports components and infra."""
