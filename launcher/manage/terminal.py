"""Text for a terminal: nothing in it that steers one."""

from __future__ import annotations

import re

_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor movements (ECMA-48, 5.4)
    r"|\x1b[\]P^_X][^\x07\x1b]*(?:\x07|\x1b\\)?"  # OSC, DCS and the like, up to BEL or ST
    r"|\x1b[ -/]*[0-~]?"
    r"|\x9b[0-?]*[ -/]*[@-~]"
)


def printable(line: str) -> str:
    """One line without escape sequences; what else cannot be printed becomes U+FFFD, a tab stays."""
    line = _ESCAPES.sub("", line)
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in line)


def lines_of(text: str) -> list[str]:
    """Printable lines of ``text``; a bare carriage return (a progress bar's) ends a line too."""
    parts = re.split(r"\r\n|\n|\r", text)
    if parts and not parts[-1]:
        parts.pop()
    return [printable(part) for part in parts]
