"""Files that ``torch.save`` wrote, from elsewhere: read as tensors and plain values only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from launcher.runtime.errors import UserError


def load_file(path: Path) -> dict[str, Any]:
    """Read a file that ``torch.save`` wrote, tensors and plain values only: no code in it is ever run.

    Raises:
        UserError: there is no such file, it is no torch file, or it holds other objects (a pickle bomb).
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # torch meets a foreign file with almost any of them
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: refused, not a file of tensors and plain values only ({reason})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: should hold a mapping of names to tensors, holds a {type(content).__name__}")
    return content
