"""Rows from tables, folders and WebDataset tars, each with its video or the reason why it has none; imports
problems."""
