"""Conversion of weights between formats, and what a weight file is; imports files, lora, motion and base."""
