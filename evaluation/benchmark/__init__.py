"""The run over models, methods, prompts and seeds; imports everything in evaluation."""
