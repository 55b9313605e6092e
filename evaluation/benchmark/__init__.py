"""The run over models, methods, prompts and seeds; imports registry, results and report."""
