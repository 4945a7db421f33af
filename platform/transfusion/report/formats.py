"""Numbers, sizes and durations as people read them."""

from transfusion.stage import duration


def number(value: float | int, digits: int = 3) -> str:
    """A number as short as it can be: `12.5k`, `0.034`, `3e-4`."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.{digits}g}M"
    if size >= 10_000 and digits < 6:
        return f"{value / 1e3:.{digits}g}k"
    if size >= 1000:
        return f"{value:,.0f}"
    if size < 1e-2:
        mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(power)}"
    return f"{value:.{digits}g}"


def percent(value: float | int, digits: int = 1) -> str:
    """`96.1%`, `100%`."""
    told = f"{value:.{digits}%}"
    return told.replace(f".{'0' * digits}%", "%")


def decimal(value: float | int) -> str:
    """Three significant digits or so."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def plural(count: int, noun: str) -> str:
    """`1 file`, `1,200 files`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def file_size(count: int) -> str:
    """`812 B`, `1.4 MB`."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def lasting(seconds: float | int) -> str:
    """`0.4s`, `12s`, `3m20s`."""
    return f"{seconds:.1f}s" if seconds < 9.95 else duration(seconds)


def words(name: str) -> str:
    """A name of the program as words."""
    return name.replace("_", " ")
