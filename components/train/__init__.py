"""One optimizer step: its settings, batches, ranks and cost, whatever the stage; imports motion, diffusion and base."""
