"""What needs no Ray of running workers; training on them is in tests/components/test_data_parallel.py."""

import logging
import pickle
from pathlib import Path

import pytest

from infra.errors import UserError, WorkError
from infra.workers import talk as worker_talk
from infra.workers import workers


def test_no_cluster_at_the_address_is_said_at_once():
    with (
        pytest.raises(UserError, match="No Ray cluster answers at '127.0.0.1:1'.*ray start --head"),
        workers.session(2, "127.0.0.1:1"),
    ):
        raise AssertionError("not reached")


def test_what_workers_tell_comes_once_and_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    heard: list[str] = []
    inbox = worker_talk.Inbox(tmp_path)
    worker_talk.open_place(tmp_path)
    inbox.hand_on(heard.append)
    worker_talk.tell(tmp_path, "one")
    worker_talk._leave(tmp_path, {"log": ["animateflow.components", logging.WARNING, "100 % of it"]})
    with (worker_talk.place_in(tmp_path) / "told").open("a") as handle:
        handle.write('{"line": "tw')
    inbox.hand_on(heard.append)
    assert heard == ["one"]
    with (worker_talk.place_in(tmp_path) / "told").open("a") as handle:
        handle.write('o"}\n')
    inbox.hand_on(heard.append)
    assert heard == ["one", "two"]
    assert [(record.name, record.message) for record in caplog.records] == [("animateflow.components", "100 % of it")]

    assert worker_talk.stop_asked(tmp_path) is None
    worker_talk.ask_to_stop(tmp_path, "SIGTERM")
    assert worker_talk.stop_asked(tmp_path) == "SIGTERM"
    worker_talk.forget(tmp_path)
    assert worker_talk.stop_asked(tmp_path) is None


def test_what_starting_again_would_not_help():
    from ray.exceptions import ActorDiedError
    from ray.train import WorkerGroupError

    def meaning(*causes: Exception) -> Exception | None:
        error = WorkerGroupError("several", dict(enumerate(causes)))
        return workers._meaning(pickle.loads(pickle.dumps(error)))

    closed = RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:8000")
    assert meaning(closed, ActorDiedError()) is None
    assert meaning(closed) is None
    assert isinstance(meaning(KeyError("a bug"), closed), KeyError)
    found = meaning(closed, WorkError("The disk is full.", "", "Make room."))
    assert isinstance(found, WorkError)
    assert found.next_step == "Make room."
