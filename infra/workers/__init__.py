"""Several processes that train together, by Ray Train, and their messages; imports the files of infra only."""
