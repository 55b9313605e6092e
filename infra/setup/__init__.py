"""Setting up and checking a checkout: the environment, the browser, the rooms; imports nothing of the project."""
