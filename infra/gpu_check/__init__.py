"""What a CUDA GPU does, in minutes: whether the code is right on it, how fast, and as predicted; imports components and
data_prep's encoder."""
