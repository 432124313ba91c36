"""How much memory there is to be had, and how much a process takes, by what the system says."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

_PLENTY = 2**62


def spare_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Memory that can be had without swapping; plenty where the system does not say."""
    try:
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return _PLENTY


def own_bytes(statm: Path = Path("/proc/self/statm")) -> int:
    """Memory that this process takes now; its peak where the system says no more."""
    try:
        return int(statm.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
