"""The command line, one group of commands a file, nothing heavy imported until a command runs; imports chain, recipes
and serving."""
