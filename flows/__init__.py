"""Recipes, Prefect flows and the command line, and the only room that knows Prefect; imports every room."""
