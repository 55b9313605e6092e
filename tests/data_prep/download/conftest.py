"""A server that lies, a folder, and two real videos to be fetched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from data_prep.download.addresses import Network
from data_prep.download.config import DownloadConfig
from data_prep.download.download import FailedDownload, Request, download
from infra.video import write_mp4
from tests.data_prep.download import lying_server as lie
from tests.data_prep.download.lying_server import Answer, LyingServer

CUT = 50_000
REST = f"bytes={CUT}-"
QUICK = DownloadConfig(
    allow_private=True, retry_seconds=0.01, retry_seconds_max=0.05, connect_seconds=2, read_seconds=1
)
ONCE = QUICK.replace(attempts=1)
Answers = Callable[[bytes, bytes], list[Answer]]


class Web:
    """A server, a folder, and two real videos of more than 150 kB."""

    def __init__(self, server: LyingServer, folder: Path, video: bytes, other: bytes) -> None:
        self.server, self.folder, self.video, self.other = server, folder, video, other
        self.target, self.url = folder / "v.mp4", f"{server.url}/v.mp4"

    def fetch(self, *answers: Answer, config: DownloadConfig = QUICK) -> FailedDownload | None:
        """Fetches /v.mp4, whose requests get these answers."""
        self.server.answers["/v.mp4"] = list(answers)
        return self.get(self.url, config)

    def get(self, url: str, config: DownloadConfig = QUICK, network: Network | None = None) -> FailedDownload | None:
        result = download([Request(url, self.target)], config, network)
        assert list(result) == [self.target]
        assert self.target.exists() == (result[self.target] is None)
        return result[self.target]

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.folder.iterdir()}

    def has(self, data: bytes) -> bool:
        """The file is these bytes, and nothing lies beside it."""
        return self.files() == {"v.mp4": data}


def told(undone: FailedDownload | None) -> tuple[str, str]:
    assert undone is not None
    return undone.reason, undone.message


def rest_of(data: bytes, first: int = CUT, etag: str = '"one"') -> Answer:
    return lie.partial(data[first:], range_of(data, first), etag)


def range_of(data: bytes, first: int = CUT, end: int = 0) -> str:
    return f"bytes {first}-{(end or len(data)) - 1}/{len(data)}"


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Two real mp4 of noise."""
    written = []
    for seed in range(2):
        path = tmp_path_factory.mktemp("video") / "video.mp4"
        write_mp4(path, np.random.default_rng(seed).integers(0, 256, (24, 96, 128, 3), dtype=np.uint8), fps=8)
        written.append(path.read_bytes())
    assert all(3 * CUT < len(data) < 20 * CUT for data in written), [len(data) for data in written]
    return written


@pytest.fixture
def web(tmp_path: Path, videos: list[bytes]) -> Iterator[Web]:
    (tmp_path / "videos").mkdir()
    with LyingServer() as server:
        yield Web(server, tmp_path / "videos", *videos)
