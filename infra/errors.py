"""The two kinds of failure. A message says what was found, what it means, and what to run next."""

from __future__ import annotations


class AnimateflowError(Exception):
    """Base of the errors that are shown without a traceback. `exit_code` is that of the command line."""

    exit_code = 1

    def __init__(self, found: str, meaning: str, next_step: str) -> None:
        self.found, self.meaning, self.next_step = found, meaning, next_step
        super().__init__(" ".join(part for part in (found, meaning, next_step) if part))

    def __reduce__(self) -> tuple[type[AnimateflowError], tuple[str, str, str]]:
        return type(self), (self.found, self.meaning, self.next_step)  # survives Ray and process boundaries


class UserError(AnimateflowError):
    """The input or the usage was wrong: exit code 2."""

    exit_code = 2


class WorkError(AnimateflowError):
    """The input was fine and the work failed: exit code 1."""


class TransientError(WorkError):
    """For want of memory or disk: the same input may succeed later, so it is no result."""


def listed(wrong: list[str], shown: int = 8) -> str:
    """The first of these, and how many more."""
    return "; ".join(wrong[:shown]) + (f"; and {len(wrong) - shown} more" if len(wrong) > shown else "")
