"""Keeping secrets out of what a run writes down."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# A whole word of the key: "api_token" is secret, "tokenizer" and "n_tokens_seen" are not.
_SECRET = re.compile(
    r"(^|_)(token|secret|password|passwd|credentials?|(api|access|private|secret)_key)$", re.IGNORECASE
)
REDACTED = "<redacted>"


def redacted(value: Any) -> Any:
    """A copy of nested ``value`` in which what stands under a secret-looking key is replaced."""
    if isinstance(value, Mapping):
        return {
            key: REDACTED if _SECRET.search(str(key)) and isinstance(item, str) else redacted(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    return value
