"""Keeping secrets out of what a run writes down and prints.

What a process knows to be secret is replaced wherever it is about to be written: a site's ``secrets``, which reach jobs
through their environment, never through a file of ours.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any, TextIO, cast

# A whole word of the key: "api_token" is secret, "tokenizer" and "n_tokens_seen" are not.
_SECRET = re.compile(
    r"(^|_)(token|secret|password|passwd|credentials?|(api|access|private|secret)_key)$", re.IGNORECASE
)
REDACTED = "<redacted>"
NAMES = "LAUNCHER_SECRETS"
"""Environment variable of a job: the names of those that hold secrets, with commas between."""
SHORTEST = 8
"""Shorter values are not looked for in texts: they would be found where they do not stand for the secret."""

_known: dict[str, str] = {}
"""Value and name of each secret that this process was told of."""


def keep_secret(secrets: Mapping[str, str]) -> None:
    """From now on no text of this process shows one of ``secrets`` (values by name)."""
    for name, value in secrets.items():
        for line in (value, *value.splitlines()):  # a key of several lines is printed line by line
            if len(line) >= SHORTEST:
                _known[line] = name


def forget_secrets() -> None:
    """For tests: this process knows none."""
    _known.clear()


def learn(env: Mapping[str, str]) -> None:
    """Be told of the secrets among the variables of a job; what it prints does not show them either."""
    names = [name for name in env.get(NAMES, "").split(",") if name]
    keep_secret({name: env[name] for name in names if name in env})
    if _known and not isinstance(sys.stdout, _Covered):
        sys.stdout, sys.stderr = cast(TextIO, _Covered(sys.stdout)), cast(TextIO, _Covered(sys.stderr))


def knows_secrets() -> bool:
    """Whether this process was told of any."""
    return bool(_known)


def scrubbed(text: str) -> str:
    """``text`` without the secrets that this process knows."""
    for value in _known:
        if value in text:
            text = text.replace(value, REDACTED)
    return text


def secret_in(text: str | bytes) -> str | None:
    """Name of a secret that stands in ``text``, or None."""
    for value, name in _known.items():
        if (value.encode() if isinstance(text, bytes) else value) in text:  # type: ignore[operator]
            return name
    return None


def looks_secret(name: str) -> bool:
    """Whether an environment variable of this name usually holds what nobody else should read."""
    return bool(_SECRET.search(name) or re.search(r"(^|_)(key|pass|pat|auth)$", name, re.IGNORECASE))


def redacted(value: Any) -> Any:
    """A copy of nested ``value`` in which what stands under a secret-looking key, or is a known secret, is replaced."""
    if isinstance(value, Mapping):
        return {
            key: REDACTED if _SECRET.search(str(key)) and isinstance(item, str) else redacted(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    return scrubbed(value) if isinstance(value, str) else value


class _Covered:
    """A stream that shows no secret."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(scrubbed(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
