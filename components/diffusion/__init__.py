"""Noise, the training objective and the samplers; imports infra only."""
