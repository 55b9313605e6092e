"""The steps from videos to scores, shared by flows and command line; imports recipes and every other room."""
