"""Starts a deployed flow on a Prefect server and, if asked, waits for its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.serving.up import api_address, on_this_machine, without_proxy
from infra.config import parse_override
from infra.errors import UserError, WorkError
from infra.runtime import QUIET

FLOWS = (
    "build-latent-cache",
    "train-domain-adapter",
    "train-motion-module",
    "train-motion-lora",
    "animate",
    "benchmark",
    "pipeline",
)
DEFAULT_RECIPE = "pocket"


def start_run(
    flow: str, recipe: str, overrides: Sequence[str], parameters: Sequence[str], watch: bool, state: Path
) -> None:
    """`prefect deployment run FLOW/RECIPE` with our parameters, against the running server.

    Raises:
        UserError: no such flow or recipe, no server, or a parameter that the flow refuses.
        WorkError: `watch` is set and the run did not complete.
    """
    if flow not in FLOWS:
        raise UserError(
            f"There is no flow {flow!r}.", f"Flows: {', '.join(FLOWS)}.", "Name one, as FLOW or FLOW/RECIPE."
        )
    api = api_address(state)
    known = deployments_of(flow, api)
    if recipe not in known:
        raise UserError(
            f"The flow {flow} has no deployment {recipe!r}.",
            f"It is deployed for: {', '.join(sorted(known)) or 'nothing'}.",
            "Name one of these, as FLOW/RECIPE." if known else "Run `animateflow up`, which deploys every flow.",
        )
    given = {
        **dict(parameter(text, known[recipe]) for text in parameters),
        **({"overrides": list(overrides)} if overrides else {}),
    }
    command = [sys.executable, "-m", "prefect", "deployment", "run", f"{flow}/{recipe}", "--params", json.dumps(given)]
    environment = {**os.environ, **QUIET, **without_proxy(os.environ)}
    environment |= {"PREFECT_API_URL": api, "PREFECT_HOME": str(state / "prefect")}
    code = subprocess.run(command + ["--watch"] * watch, env=environment, check=False).returncode
    if code and watch:
        raise WorkError(
            f"The run of {flow}/{recipe} did not complete.", "", "Its log is in Prefect, at the address above."
        )
    if code:
        raise UserError(f"Prefect refused to start {flow}/{recipe}.", "The reason is above.", "Correct the parameters.")


def parameter(text: str, schema: Mapping[str, Any]) -> tuple[str, Any]:
    """`prompt=a fox: running` to its name and value: as it stands where the deployment's `schema` wants text, else
    YAML."""
    name, separator, value = text.partition("=")
    wanted = schema.get("properties", {}).get(name.strip(), {})
    kinds = {each.get("type") for each in wanted.get("anyOf", [wanted])}
    if separator and "string" in kinds and kinds <= {"string", "null"}:
        return name.strip(), value
    return parse_override(text)


def deployments_of(flow: str, api: str) -> dict[str, dict[str, Any]]:
    """A flow's deployments, named as recipes are, and the JSON schema of each one's parameters. Logs in as Prefect's
    client does.

    Raises:
        UserError: the server wants another login, or does not answer as one of Prefect's.
    """
    import httpx

    login = os.environ.get("PREFECT_API_AUTH_STRING")
    user, _, password = (login or "").partition(":")
    key = os.environ.get("PREFECT_API_KEY")
    try:
        answer = httpx.post(
            f"{api}/deployments/filter",
            json={"flows": {"name": {"any_": [flow]}}},
            timeout=30,
            auth=(user, password) if login else None,
            headers={"Authorization": f"Bearer {key}"} if key and not login else {},
            trust_env=not on_this_machine(api),
        )
        answer.raise_for_status()
        return {str(found["name"]): found.get("parameter_openapi_schema") or {} for found in answer.json()}
    except httpx.HTTPStatusError as error:
        if error.response.status_code in (401, 403):
            raise UserError(
                f"The Prefect server at {api} wants a login.",
                "It was started with PREFECT_SERVER_API_AUTH_STRING, or is Prefect Cloud.",
                "Set PREFECT_API_AUTH_STRING=user:password, or PREFECT_API_KEY.",
            ) from None
        raise UserError(
            f"The Prefect server at {api} answers {error.response.status_code}.", "", "Look at its log."
        ) from None
    except (httpx.HTTPError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"No Prefect server answers at {api}: {type(error).__name__}.", "", "Check PREFECT_API_URL."
        ) from None
