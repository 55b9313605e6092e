"""A latent cache as a page of pictures and histograms; imports everything in data_prep but builder."""
