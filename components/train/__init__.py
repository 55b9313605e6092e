"""One optimizer step: its settings, batches, ranks and cost, for any stage; imports motion, diffusion and base."""
