"""One process at a time at what two would spoil: the next one waits for its turn.

The folder of a run, where a second process ends and does not wait, is `folder.py`'s.
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
    """Hold the lock file `path`, and wait while another process has it; a line then names `what`.

    The system releases a lock when its process ends, however it ends. The file is removed. On a
    file system without locks nobody waits.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = acquired(path)
    if file is None:
        print(f"{what}: another run is busy with it; waiting until it ends", flush=True)
    while file is None:
        stop_if_asked(f"the wait for {what}")
        time.sleep(POLL)
        file = acquired(path)
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # held still, so whoever waits sees that it is gone


def acquired(path: Path) -> IO | None:
    """The lock file, open and locked; None while another process has it."""
    file = open(path, "a")
    try:
        if fcntl:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                raise FileNotFoundError  # the one before removed it, and a third made it anew
    except FileNotFoundError:
        file.close()
        return acquired(path)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            file.close()
            return None  # any other, ENOLCK for one: this file system has no locks
    return file
