"""What a check found, in plain sentences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from marginalia.errors import MarginaliaError, Message, compose

type Severity = Literal["error", "warning", "note"]

_HEADS = {"error": "Cannot run", "warning": "Probably a mistake", "note": "Note"}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or looks so.

    `kind` is one word for programs: data, shape, python, refused, program, unreached, twice, coincidence, masked,
    improper, plate. An "error" stops every run; a "warning" gives an answer to another question than the one that
    was meant; a "note" may well be meant.
    """

    kind: str
    where: str
    what: str
    expected: str = ""
    got: str = ""
    remedy: str = ""
    severity: Severity = "warning"

    def __str__(self) -> str:
        text: str = compose(self.what, where=self.where, expected=self.expected, got=self.got, remedy=self.remedy)
        if "." not in text.split(" ")[0]:  # a file keeps its name
            text = text[:1].upper() + text[1:]
        return f"{_HEADS[self.severity]}. {text}"

    @classmethod
    def of_error(cls, kind: str, error: MarginaliaError) -> Finding:
        """What a run would stop with."""
        message = error.args[0] if error.args else ""
        if isinstance(message, Message):
            parts = (message.where, message.what, message.expected, message.got, message.remedy)
            return cls(kind, *parts, severity="error")
        return cls(kind, "", str(error), severity="error")


@dataclass(frozen=True)
class Findings:
    """All that `check` found; true when there is something. `checked` and `unchecked` say what was looked at.

    >>> findings = mg.check(model, y)
    >>> if findings:
    ...     print(findings)
    """

    found: tuple[Finding, ...] = ()
    checked: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.found)

    def __len__(self) -> int:
        return len(self.found)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.found)

    def __getitem__(self, index: int) -> Finding:
        return self.found[index]

    def __str__(self) -> str:
        lines = [f"{len(self)} finding{'s' if len(self) > 1 else ''}." if self.found else "Nothing found."]
        lines += [f"{i}. {finding}" for i, finding in enumerate(self.found, 1)]
        if self.checked:
            lines.append(f"Checked: {'; '.join(self.checked)}.")
        if self.unchecked:
            lines.append(f"Not checked: {'; '.join(self.unchecked)}.")
        return "\n".join(lines)
