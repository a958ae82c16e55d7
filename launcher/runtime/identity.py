"""What makes two runs the same run: the hash of what they would learn from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

RUN_ID_DIGITS = 12


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces; equal values give equal text. NaN and infinity are refused (ValueError)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def run_id(science: Mapping[str, Any], parent: str | None = None) -> str:
    """First 12 hex digits of the SHA-256 of the canonical JSON of ``science``.

    Args:
        parent: id of the run from whose state this one begins: it learns something else than one from scratch.
    """
    hashed = science if parent is None else {"parent": parent, "science": science}
    return hashlib.sha256(canonical_json(hashed).encode()).hexdigest()[:RUN_ID_DIGITS]
