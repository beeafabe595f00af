"""The value that flows through everything: one architecture."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Arch:
    """One architecture: the index of the option taken at each decision of its space.

    The indices mean something only together with the `SearchSpace` they belong to. ``str(arch)`` is the form
    that tables and file names use; `parse` is its inverse.
    """

    choices: tuple[int, ...]

    def __str__(self) -> str:
        return ".".join(map(str, self.choices))

    @classmethod
    def parse(cls, text: str) -> Arch:
        """Read the text form, e.g. ``"0.2.1"``.

        Raises:
            ValueError: The text is not dot-separated non-negative integers.
        """
        parts = text.split(".")
        if not all(part.isascii() and part.isdigit() for part in parts):
            raise ValueError(f"not an architecture: {text!r}; expected option indices joined by dots, such as '0.2.1'")
        return cls(tuple(map(int, parts)))
