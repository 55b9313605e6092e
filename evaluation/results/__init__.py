"""Rows of scores, their statistics and their overview picture; imports metrics and components."""
