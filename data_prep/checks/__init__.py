"""The great_expectations suites on a source's rows and on a finished cache; imports sources, cache and the config."""
