"""The training loop, its checkpoints and its launch; imports train and train/report."""
