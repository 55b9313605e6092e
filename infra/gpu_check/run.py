"""All checks on a worker, one after the other, within the minutes that there are."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import IO, Any

from infra.gpu_check.checks import Check
from infra.gpu_check.machine import ROOT
from infra.gpu_check.rows import Row

ENVIRONMENT = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # cuBLAS repeats itself with this; on Hopper it is torch's own choice
    "HF_HUB_OFFLINE": "1",
}
"""Of the worker, read when CUDA starts."""
GRACE_SECONDS = 20.0
"""From a worker's own end at its limit to the end that it is given."""
KEPT_SECONDS = 10.0
"""For the end: the table and the file."""
TRACE_CHARACTERS = 20_000


class Worker:
    """A process that does checks until one of them ends it."""

    def __init__(self, rehearse: bool) -> None:
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the worker
        self._process = subprocess.Popen(
            [sys.executable, "-m", "infra.gpu_check.parts.worker", *(["rehearse"] if rehearse else [])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True, cwd=ROOT,
            env={**os.environ, **ENVIRONMENT},
        )  # fmt: skip
        self._replies: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._replies.put(json.loads(line))
        self._replies.put(None)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, check: Check, seconds: float, rows: Sequence[Row]) -> Iterator[Row]:
        """The check's rows as they come, and one `failed` at the end where it failed; the worker is then dead."""
        request = {"run": check.run, "arguments": check.arguments, "seconds": seconds, "rows": [*map(asdict, rows)]}
        began = time.monotonic()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        while True:
            try:
                reply = self._replies.get(timeout=max(0.1, began + seconds + GRACE_SECONDS - time.monotonic()))
            except queue.Empty:
                reply = None
            if reply is None:
                yield self._died(check, time.monotonic() - began, seconds)
                return
            if "row" in reply:
                yield Row(**reply["row"])
            elif "error" in reply:
                error = reply["error"]
                note = f"{error['type']}: {(error['message'].splitlines() or [''])[0]}"
                self.close()
                yield Row(check.name, status="failed", note=note, details=error, seconds=time.monotonic() - began)
                return
            else:
                return

    def _died(self, check: Check, took: float, seconds: float) -> Row:
        """Of its limit, or by itself."""
        self._process.kill()
        self._process.wait()
        late = took >= seconds
        self._said.seek(0)
        trace = self._said.read().decode(errors="replace")[-TRACE_CHARACTERS:]
        self.close()
        kind = "TimeLimit" if late else "WorkerDied"
        message = f"not done after {seconds:.0f} s" if late else f"exit code {self._process.returncode}"
        details = {"type": kind, "message": message, "traceback": trace}
        return Row(check.name, status="failed", note=f"{kind}: {message}", details=details, seconds=took)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._listener.join()
        for pipe in (self._process.stdin, self._process.stdout, self._said):
            if pipe is not None:
                pipe.close()


def run(
    checks: Sequence[Check], end: float, rehearse: bool, told: Callable[[Row], None], patience: float = 1.0
) -> None:
    """Every check that there is time for before `end` (of `time.monotonic`); every row is told as it is found."""
    rows: list[Row] = []

    def tell(row: Row, part: str) -> None:
        row.part = part
        rows.append(row)
        told(row)

    worker: Worker | None = None
    for check in checks:
        if check.if_short and not rehearse and not _is_short(rows, check.if_short):
            continue
        left = end - KEPT_SECONDS - time.monotonic()
        if left < check.needs:
            tell(Row(check.name, status="not reached", note=f"needs {check.needs:.0f} s"), check.part)
            continue
        if worker is None or not worker.alive:
            worker = Worker(rehearse)
        limit = check.limit * patience
        for row in worker.ask(check, min(limit, left), rows):
            if row.details.get("type") == "TimeLimit" and left < limit:
                row.status = "not reached"
            tell(row, check.part)
    if worker is not None:
        worker.close()


def _is_short(rows: Sequence[Row], words: str) -> bool:
    return any(row.status == "short" and words in row.what for row in rows)
