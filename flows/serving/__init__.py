"""Prefect's server, worker and deployments, and what a run shows there; imports components and infra."""
