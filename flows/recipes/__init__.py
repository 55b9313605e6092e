"""Recipes, one file each, and how they are looked up; imports the configs of the other rooms."""
