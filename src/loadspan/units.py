"""Bytes, seconds and bytes per second as text. Decimal units: 1 GB is 10^9 bytes."""

from __future__ import annotations

_SIZES = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
_MINUTE, _HOUR = 60, 3600


def _three_digits(value: float) -> str:
    """Three significant digits without an exponent: 1.23, 12.3, 123."""
    if value < 9.995:  # noqa: PLR2004 - where rounding to two decimals would give a fourth digit
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}"  # noqa: PLR2004 - as above, for one decimal


def size(value: float) -> str:
    """Bytes as text: `508 MB`, `20.0 GB`, `512 B`."""
    for unit, factor in _SIZES:
        if value >= 0.9995 * factor:
            return f"{_three_digits(value / factor)} {unit}"
    return f"{value:.0f} B"


def binary(size: int) -> str:
    """Bytes in the units of the kernel's own settings: `128 KiB`, `8 MiB`."""
    return f"{size >> 20} MiB" if size >= 1 << 20 and not size % (1 << 20) else f"{size / 1024:g} KiB"


def share(value: float) -> str:
    """A part of one as text: `42 %`."""
    return f"{100 * value:.0f} %"


def count(number: float) -> str:
    """`1 200`: the space of the international system, which no language reads as a decimal point."""
    return f"{number:,.0f}".replace(",", " ")


def throughput(value: float) -> str:
    """Bytes per second as text: `2.50 GB/s`."""
    return f"{size(value)}/s"


def seconds(value: float) -> str:
    """Seconds as text: `12.3 s`, `4 min 05 s`, `1 h 02 min`, `3.20 ms`, `15.0 us`."""
    if value >= _HOUR:
        minutes = round(value / _MINUTE)
        return f"{minutes // 60} h {minutes % 60:02d} min"
    if value >= 99.95:  # noqa: PLR2004 - the first value that three digits of seconds would round up to 100
        whole = round(value)
        return f"{whole // 60} min {whole % 60:02d} s"
    if value >= 0.9995:  # noqa: PLR2004 - as above, for 1000 ms
        return f"{_three_digits(value)} s"
    if value >= 0.0009995:  # noqa: PLR2004 - as above, for 1000 us
        return f"{_three_digits(value * 1e3)} ms"
    return f"{_three_digits(value * 1e6)} us" if value > 0 else "0 s"
