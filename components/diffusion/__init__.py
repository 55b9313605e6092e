"""Noise schedules, the training objective and sampling; imports infra only."""
