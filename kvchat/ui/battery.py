"""Whether this machine runs on its battery, and how much is left of it. Starts no program."""

from __future__ import annotations

from pathlib import Path

_SUPPLIES = Path("/sys/class/power_supply")


def battery_percent(supplies: Path = _SUPPLIES) -> int | None:
    """Percent that are left while the machine runs on its battery; None on mains, without a battery, and where nobody
    says: on Linux alone the kernel tells in files, `supplies`."""
    try:
        each = [path for path in supplies.iterdir() if _read(path / "type") == "Battery"]
    except OSError:
        return None
    left = [
        int(capacity)
        for path in each
        if _read(path / "scope") != "Device"  # that of a mouse
        and _read(path / "status") == "Discharging"
        and (capacity := _read(path / "capacity")).isdecimal()
    ]
    return min(left, default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""
