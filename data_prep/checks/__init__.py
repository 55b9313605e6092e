"""great_expectations suites on a source's rows and a finished cache; imports problems, sources, cache and config."""
