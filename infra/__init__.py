"""The ground that every room stands on: artifacts, configs, errors, logs, workers and the pocket world; imports no
other room."""
