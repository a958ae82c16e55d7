"""The default name of a sweep: made of what is chosen and the names of what varies, never of a value or the clock."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

_HASH_DIGITS = 6


def default_name(choices: Mapping[str, str | None], varying: Collection[str] = ()) -> str:
    """``<experiment or model>-<data>``, followed by a hash of the ``varying`` keys where there are any.

    A task that has no such groups gives its own name.

    A group that varies stands under its own name, so that one more option extends the sweep instead of renaming it.
    """

    def chosen(group: str) -> str | None:
        return group if group in varying else choices.get(group)

    parts = (chosen("experiment") or chosen("model"), chosen("data"))
    name = "-".join(part for part in parts if part) or str(chosen("task"))
    if varying:
        name += "-" + hashlib.sha256("\n".join(sorted(varying)).encode()).hexdigest()[:_HASH_DIGITS]
    return name
