"""What ``launcher doctor`` found, one line each."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    verdict: str
    """``ok``, ``warn`` (works, with a drawback) or ``fail`` (will not work)."""
    text: str
    """What was found."""
    advice: str = ""
    """What to do about it."""

    def __str__(self) -> str:
        """One line."""
        return f"{self.verdict:<5} {self.name:<15} {self.text}{'; ' + self.advice if self.advice else ''}"


def ok(name: str, text: str) -> Finding:
    """As it should be."""
    return Finding(name, OK, text)


def warn(name: str, text: str, advice: str) -> Finding:
    """Works, with a drawback."""
    return Finding(name, WARN, text, advice)


def fail(name: str, text: str, advice: str) -> Finding:
    """Will not work."""
    return Finding(name, FAIL, text, advice)
