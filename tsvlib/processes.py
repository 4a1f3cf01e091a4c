"""Other processes of this machine."""

from __future__ import annotations

import psutil


def is_running(process: int) -> bool:
    """Whether a process lives; one that has ended but was not waited for does not."""
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # it runs under another name
        return True
