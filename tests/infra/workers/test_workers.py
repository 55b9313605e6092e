"""Workers without a running Ray; training on them is in tests/components/train/test_data_parallel.py."""

import logging
import pickle
from pathlib import Path

import pytest

from infra.errors import UserError, WorkError
from infra.workers import messages, workers


def test_no_cluster_at_the_address_is_said_at_once():
    with (
        pytest.raises(UserError, match="No Ray cluster answers at '127.0.0.1:1'.*ray start --head"),
        workers.session(2, "127.0.0.1:1"),
    ):
        raise AssertionError("not reached")


def test_messages_of_workers_are_delivered_once_and_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    received: list[str] = []
    inbox = messages.Inbox(tmp_path)
    messages.open_mailbox(tmp_path)
    inbox.deliver(received.append)
    messages.send(tmp_path, "one")
    messages._append(tmp_path, {"log": ["animateflow.components", logging.WARNING, "100 % of it"]})
    with (messages.workers_folder(tmp_path) / "messages.jsonl").open("a") as handle:
        handle.write('{"line": "tw')
    inbox.deliver(received.append)
    assert received == ["one"]
    with (messages.workers_folder(tmp_path) / "messages.jsonl").open("a") as handle:
        handle.write('o"}\n')
    inbox.deliver(received.append)
    assert received == ["one", "two"]
    assert [(record.name, record.message) for record in caplog.records] == [("animateflow.components", "100 % of it")]

    assert messages.stop_requested(tmp_path) is None
    messages.request_stop(tmp_path, "SIGTERM")
    assert messages.stop_requested(tmp_path) == "SIGTERM"
    messages.remove_mailbox(tmp_path)
    assert messages.stop_requested(tmp_path) is None


def test_errors_that_a_restart_would_not_help_are_raised():
    from ray.exceptions import ActorDiedError
    from ray.train import WorkerGroupError

    def meaning(*causes: Exception) -> Exception | None:
        error = WorkerGroupError("several", dict(enumerate(causes)))
        return workers._error_to_raise(pickle.loads(pickle.dumps(error)))

    closed = RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:8000")
    assert meaning(closed, ActorDiedError()) is None
    assert meaning(closed) is None
    assert isinstance(meaning(KeyError("a bug"), closed), KeyError)
    found = meaning(closed, WorkError("The disk is full.", "", "Make room."))
    assert isinstance(found, WorkError)
    assert found.next_step == "Make room."
