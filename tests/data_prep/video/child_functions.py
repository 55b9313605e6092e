"""What a decoder does on a bad day, for the child process; spawned children import functions by name."""

import ctypes
import os
import signal
import time
from pathlib import Path

from data_prep.video.read_video import VideoAnswer, VideoRequest, read_video


def answer(request: str) -> str:
    if request == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if request == "hang":
        time.sleep(60)
    if request == "nap":
        time.sleep(1)
    if request == "spin":
        while True:
            pass
    if request == "raise":
        raise KeyError("a surprise")
    return f"{request}, {os.getpid()}"


def refuse_to_start() -> None:
    raise ImportError("no such library")


def start_slowly() -> None:
    time.sleep(1.5)


def read_or_die(request: VideoRequest) -> VideoAnswer:
    """Reads a video, or does what its name says."""
    name = Path(request.file.address).name
    if name.startswith("segfault"):
        ctypes.string_at(0)
    if name.startswith("hang"):
        time.sleep(600)
    return read_video(request)
