"""One file a metric, each with its definition and source; imports components and infra."""
