"""How a run is stopped: Ctrl-C and SIGTERM are noted, and it stops at a good moment; and that it
ends, with a code, whatever went wrong."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist

from runtime.terminal import printable

STOPPING = signal.SIGTERM, signal.SIGINT
received = None  # the one that asked this process to stop


class Stopped(Exception):
    """The run was asked to stop; `code` is the exit code, 128 + the signal's number."""

    def __init__(self, where: str):
        super().__init__(f"stopped in {where}; the same command goes on (without --fresh)")
        self.code = 128 + (received or signal.SIGTERM)  # not ours, then another rank's


def stop_if_asked(where: str) -> None:
    if received:
        raise Stopped(where)


def code_of(work: Callable[[], int | None]) -> int:
    """The exit code of work(): its own, 0 of None; of an error that a user can cause it is 2, and
    one sentence is printed; of a stop it is the signal's."""
    try:
        return work() or 0
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return stop.code
    except BrokenPipeError:  # `| head` that has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is not flushed
        return 128 + signal.SIGPIPE
    except torch.OutOfMemoryError:
        print("error: out of memory; use a smaller --batch-size or --image-size", file=sys.stderr)
    except (ValueError, OSError) as error:
        lines = str(error).split("\n")  # of the expected folder tree
        print("error:", "\n".join(printable(line, 1000) for line in lines), file=sys.stderr)
    except RuntimeError as error:
        if "shared memory" in str(error):  # of a loader's worker; a container has 64 MB by default
            advice = "start the container with --ipc=host, or give --workers 0"
            print(f"error: too little shared memory for the workers; {advice}", file=sys.stderr)
        elif dist.is_initialized():
            print(f"error: another rank was lost, or {error}", file=sys.stderr)
        else:
            raise
    return 2


def run(main: Callable[[], int]) -> None:
    """Call main, note the signals meanwhile, and end the process with its code.

    Loader workers ignore SIGTERM, and Python waits for its children before it ends: they are
    killed, or a run that failed would stay for ever.
    """
    sys.stdout.reconfigure(errors="backslashreplace")  # letters that the terminal does not have
    for each in STOPPING:
        signal.signal(each, note)
    try:
        sys.exit(main())
    finally:
        for child in multiprocessing.active_children():
            child.kill()


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
