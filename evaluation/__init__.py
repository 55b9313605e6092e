"""Animations to scores, measured on the files as an outsider would; imports components and infra."""
