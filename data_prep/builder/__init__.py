"""A latent cache built, or its next version, and what one will cost; imports everything in data_prep but look."""
