"""Bytes and seconds as people read them."""

from __future__ import annotations


def human_size(size: float) -> str:
    """Decimal units, as limits are stated: 6 GB is 6,000,000,000 bytes."""
    units = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    scale, unit = next(((s, u) for s, u in units if abs(size) >= 0.9995 * s), (1.0, "B"))
    return f"{size / scale:.3g} {unit}"


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `1 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
