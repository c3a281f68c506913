"""How a run is stopped: Ctrl-C and SIGTERM are noted, and it stops at a good moment; and that it
ends, with a code, whatever went wrong."""

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable

STOPPING = signal.SIGTERM, signal.SIGINT
received = None  # the one that asked this process to stop


class Stopped(Exception):
    """The run was asked to stop; `code` is the exit code, 128 + the signal's number."""

    def __init__(self, where: str):
        super().__init__(f"stopped in {where}; the same command goes on")
        self.code = 128 + (received or signal.SIGTERM)  # not ours, then another rank's


def stop_if_asked(where: str) -> None:
    if received:
        raise Stopped(where)


def run(main: Callable[[], int]) -> None:
    """Call main, note the signals meanwhile, and end the process with its code.

    Any other error is printed and is code 1. Loader workers ignore SIGTERM, and Python waits for
    its children before it ends: they are killed, or a run that failed would stay for ever.
    """
    for each in STOPPING:
        signal.signal(each, note)
    code = 1
    try:
        code = main()
    except SystemExit as stop:  # argparse's
        code = stop.code
    except BaseException:  # noqa: BLE001 (whatever it is, it is shown)
        traceback.print_exc()
    for child in multiprocessing.active_children():
        child.kill()
    sys.exit(code)


def note(number: int, frame: object) -> None:
    """The next such signal kills."""
    global received
    received = number
    for each in STOPPING:
        signal.signal(each, signal.SIG_DFL)
    os.write(2, b"\nstopping after this step; the same again stops at once\n")


def ignore(worker: int) -> None:
    """For loader workers, which are sent Ctrl-C too: they end when their run does."""
    for each in STOPPING:
        signal.signal(each, signal.SIG_IGN)
