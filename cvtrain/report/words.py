"""Figures in words: their names, units and which way is better."""

import re

# As the terminal's table has them: what ends so is in per cent.
PER_CENT = re.compile(r"(^|_)(err|iou|(mAP|AR)\d*(_(small|medium|large))?)$")


def unit(name: str) -> str:
    """` %` or nothing, of a figure as `top1_err`, `mAP50`, `loss`."""
    return " %" if PER_CENT.search(name) else ""


def figure(name: str, value: float) -> str:
    """A value with its unit: per cent to a hundredth, anything else to four digits."""
    return f"{value:.2f} %" if unit(name) else number(value)


def number(value: float) -> str:
    """`10,706`, `51.2`, `0.02622`."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}"


def lower_is_better(name: str) -> bool:
    return not re.search(r"(^|_)(iou|acc|accuracy|(mAP|AR)\d*(_(small|medium|large))?)$", name)


def duration(seconds: float) -> str:
    """`1 h 2 min`, `3 min 20 s`, `12.3 s`."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def size(count: float) -> str:
    """Bytes, as `1.2 GB`."""
    for name in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or name == "GB":
            break
        count /= 1000
    return f"{count:.3g} {name}"
