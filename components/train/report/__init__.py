"""What a training shows: curves, samples, memory and held-out losses; imports train and diffusion."""
