"""Locks for work that two processes at once would spoil: the second one waits for its turn.

The lock of a run's folder, where a second process ends instead of waiting, is in `folder.py`.
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from runtime.signals import stop_if_asked

try:
    import fcntl
except ImportError:  # Windows: nobody waits there
    fcntl = None

POLL = 0.2  # seconds


@contextlib.contextmanager
def one_at_a_time(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path`. While another process has it, wait; a line then names `what`.

    The system releases a lock when its process ends, however it ends. The file is removed. On a
    file system without locks nobody waits.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = acquired(path)
    if file is None:
        print(f"{what}: another run is busy with it; waiting until it ends", flush=True)
    while file is None:
        stop_if_asked(f"while waiting for {what}")
        time.sleep(POLL)
        file = acquired(path)
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while it is locked, so that whoever waits sees it


def acquired(path: Path) -> IO | None:
    """The lock file, open and locked; None while another process has it."""
    file = open(path, "a")
    try:
        if fcntl:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                raise FileNotFoundError  # its last holder removed it, another made it anew
    except FileNotFoundError:
        file.close()
        return acquired(path)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            file.close()
            return None
        # Any other error, such as ENOLCK: this file system has no locks.
    return file
