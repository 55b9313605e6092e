"""Why a row of a source has no video."""

from __future__ import annotations

from dataclasses import dataclass

UNREAD = frozenset(
    {
        "malformed_row",
        "bad_name",
        "bad_sidecar",
        "broken_tar",
        "no_plain_file",
        "no_video",
        "two_videos",
        "two_captions",
    }
)
"""Reasons of rows whose id and caption are not what the source meant: these are not judged by what they say."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A code and a sentence."""

    reason: str
    message: str


def printable(name: str) -> str:
    r"""A file's name as text: bytes that are not UTF-8 become \udc80 and so on."""
    return name.encode("utf-8", "backslashreplace").decode()


class UnusableError(Exception):
    """The video cannot be used; `reason` is a code, the text a sentence."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason, self.message = reason, message
        super().__init__(message)
