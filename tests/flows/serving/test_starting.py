"""What reaches a Prefect server from here: with its login, past a proxy, and in words where it refuses."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.animate import animate
from flows.recipes.recipes import recipe_named
from flows.serving.starting import deployments_of, parameter
from flows.serving.up import is_healthy, without_proxy
from infra.config import apply_overrides
from infra.errors import UserError


class Server(http.server.BaseHTTPRequestHandler):
    """Names two deployments to who logs in as guest."""

    login = "Basic " + base64.b64encode(b"guest:s:cret").decode()

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        good = self.headers.get("Authorization") == self.login
        self.send_response(200 if good else 401)
        self.end_headers()
        self.wfile.write(json.dumps([{"name": "sd15"}, {"name": "pocket"}]).encode() if good else b"{}")

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def api() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()


def test_a_login_is_used_and_its_lack_is_told(api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="wants a login.*PREFECT_API_AUTH_STRING=user:password"):
        deployments_of("animate", api)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "guest:s:cret")
    assert deployments_of("animate", api) == {"pocket": {}, "sd15": {}}


def test_a_server_of_this_machine_is_asked_without_the_proxy(api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "guest:s:cret")
    assert is_healthy(f"{api}/health")
    assert deployments_of("animate", api) == {"pocket": {}, "sd15": {}}


def test_nobody_there_is_one_line() -> None:
    with pytest.raises(UserError, match="No Prefect server answers at"):
        deployments_of("animate", "http://127.0.0.1:9/api")


def test_own_hosts_are_added_to_those_without_a_proxy() -> None:
    assert without_proxy({})["NO_PROXY"] == "127.0.0.1,localhost"
    assert without_proxy({"no_proxy": "intern,localhost"})["no_proxy"] == "intern,localhost,127.0.0.1"


PROMPTS = Path(__file__).resolve().parents[4] / "shared" / "cases" / "prompts.txt"


@pytest.mark.skipif(not PROMPTS.is_file(), reason="no cases beside the project")
def test_a_prompt_arrives_unchanged_by_every_way() -> None:
    """By `--set` here, and by `--param` through a deployment's schema."""
    schema = animate.parameters.model_dump()
    for prompt in PROMPTS.read_text(encoding="utf-8").splitlines():
        changed = apply_overrides(recipe_named("pocket"), [f"animation.prompt={prompt}"])
        assert changed.animation.prompt == prompt
        assert parameter(f"prompt={prompt}", schema) == ("prompt", prompt)


def test_other_parameters_are_yaml() -> None:
    schema = animate.parameters.model_dump()
    assert parameter("seed=7", schema) == ("seed", 7)
    assert parameter("unknown=[1, 2]", schema) == ("unknown", [1, 2])
