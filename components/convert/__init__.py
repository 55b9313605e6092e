"""Weights between the formats of other programs, and what a weight file is; imports files, lora, motion and base."""
