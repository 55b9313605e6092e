"""The model registry: the base and personalised models that a benchmark animates, each with its name and its words."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from components.base.model import BaseModel, fingerprint_of
from infra.artifacts.artifacts import Input
from infra.config import Config
from infra.errors import UserError

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # names become folders
PLACE = "{prompt}"


class RegistryEntry(Config):
    """A text-to-image model to animate."""

    name: str = Field(pattern=NAME)
    """Short name in paths, tables and on the command line."""
    title: str
    """Name for people."""
    base: BaseModel
    """Its files."""
    trigger: str = ""
    """Words put around a prompt: `ink drawing, {prompt}`; words without `{prompt}` go in front of it, with a comma."""
    licence: str
    """Licence of the weights; it is printed in the report, because it decides what may be published."""

    def full_prompt(self, prompt: str) -> str:
        """The prompt with the model's trigger words around it."""
        if PLACE in self.trigger:
            return self.trigger.replace(PLACE, prompt)
        return f"{self.trigger}, {prompt}" if self.trigger else prompt

    def as_input(self) -> Input:
        """The model's files as an artifact's input.

        Raises:
            UserError: files that are not there or are no base model; the message names the entry and the path.
        """
        try:
            return fingerprint_of(self.base)
        except UserError as error:
            found = f"Model {self.name!r} of the registry: {error.found}"
            raise UserError(found, error.meaning, error.next_step) from None


def entry_named(name: str, entries: Sequence[RegistryEntry]) -> RegistryEntry:
    """The entry of that name.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    for entry in entries:
        if entry.name == name:
            return entry
    known = ", ".join(entry.name for entry in entries) or "none"
    raise UserError(f"The registry has no model {name!r}.", f"Models in it: {known}.", "Name one of them, or add it.")
