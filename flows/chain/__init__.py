"""The steps from videos to scores, which flows and command line share; imports recipes."""
