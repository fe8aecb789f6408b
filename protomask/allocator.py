"""Keep the C library's allocator from giving large blocks back to the system after every pass.

By default glibc maps every large tensor afresh and unmaps it when it is freed; in a loop of network passes the page
faults cost more than the arithmetic (MobileNetV2 forward + backward at batch 16: two to three times slower). This is a
setting of the whole process, so the commands make it and the library does not.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEEP = 1 << 30


def keep_memory() -> bool:
    """Raise glibc's mmap and trim thresholds to 1 GiB for this process; False where there is no glibc."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        return bool(libc.mallopt(_M_MMAP_THRESHOLD, _KEEP) and libc.mallopt(_M_TRIM_THRESHOLD, _KEEP))
    except (OSError, AttributeError):
        return False
