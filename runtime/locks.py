"""Locks for work that two processes at once would spoil.

`one_at_a_time` lets the second process wait for its turn. Where it ends instead, its sentence is in
`folder.py` and in `reports/labelled_folder.py`.
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from runtime.signals import stop_if_asked
from runtime.terminal import tell

try:
    import fcntl
except ImportError:  # Windows: two processes at once are not noticed there
    fcntl = None

POLL = 0.2  # seconds


def locked(file: IO) -> bool:
    """Lock an open file for this process; False if another process has locked it. An OSError where
    the file system has no locks.

    The system releases the lock when the file is closed or the process ends, however it ends.
    """
    if fcntl is None:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):  # what POSIX says of a held lock
            return False
        raise
    return True


@contextlib.contextmanager
def one_at_a_time(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path`. While another process has it, wait; a line then names `what`.

    The file is removed at the end. On a file system without locks nobody waits.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = acquired(path)
    if file is None:
        tell(f"{what}: another run is busy with it; waiting until it ends")
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
        if not locked(file):
            file.close()
            return None
    except OSError:  # this file system has no locks
        return file
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            return file
    file.close()  # its last holder has removed it
    return acquired(path)
