"""Numbers of bytes as people read them."""

from __future__ import annotations


def told(n_bytes: float) -> str:
    """``34.2 MB``, in powers of 1,000."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n_bytes) < 1000:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.1f} TB"
