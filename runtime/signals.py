"""How a run ends: a signal that asks it to stop is noted, and obeyed at a good moment; and an error
that a user can cause ends it with one sentence and an exit code.

Whoever checks `received` decides what is saved before it stops.
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist

from runtime.terminal import end_progress, printable, tell

STOPPING = [signal.SIGTERM, signal.SIGINT]
if hasattr(signal, "SIGHUP"):  # a terminal that was closed; Windows has none
    STOPPING.append(signal.SIGHUP)
received = None  # the signal that asked this process to stop
fresh_is_done = False  # whether a --fresh has set old files aside, and must not do so again


class Stopped(Exception):
    """The run was asked to stop. `when` ends the sentence: "in the download of ...", "before phase
    gcn". `code` is the exit code, 128 + the signal's number."""

    def __init__(self, when: str, resumes: bool = True):
        hint = " (without --fresh)" if fresh_is_done else ""
        goes_on = "resumes it" if resumes else "begins this part again"
        super().__init__(f"stopped {when}; the same command {goes_on}{hint}")
        self.code = 128 + (received or signal.SIGTERM)  # the latter if another rank received it


def stop_if_asked(when: str) -> None:
    if received:
        raise Stopped(when)


def code_of(work: Callable[[], int | None]) -> int:
    """Call work() and return the exit code: what it returned, where None is 0; 2 after an error
    that a user can cause, which is printed as one sentence; 128 + the number of a signal."""
    try:
        code = work() or 0
        sys.stdout.flush()
        return code
    except Stopped as stop:
        end_progress()
        tell(str(stop), sys.stderr)
        return stop.code
    except BrokenPipeError:  # `| head` that has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is not flushed
        return 128 + 13  # SIGPIPE's number, which Windows does not name
    except MemoryError:
        sentence = OUT_OF_MEMORY
    except (ValueError, OSError) as error:
        text = str(error)
        if getattr(error, "errno", None) and getattr(error, "filename", None):  # the system's own
            text = f"cannot use {error.filename} ({error.strerror}); correct the path, or choose a "
            text += "place that you can read and write"
        lines = text.split("\n")  # several, if it has the expected folder tree
        sentence = "\n".join(printable(line, 1000) for line in lines)
        if "more than 1 value per channel" in sentence:  # torch's, of batch norm
            sentence = ONE_PHOTO
    except RuntimeError as error:
        sentence = sentence_for(error)
        if sentence is None:
            raise
    end_progress()
    tell(f"error: {sentence}", sys.stderr)
    return 2


ONE_PHOTO = "a batch of one photo is too small for batch norm here; use a larger --batch-size"
OUT_OF_MEMORY = "out of memory; use a smaller --batch-size, --image-size or number of --workers"


def sentence_for(error: RuntimeError) -> str | None:
    """What a user can do about an error of torch; None where it is a fault of the program."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in text:
        return OUT_OF_MEMORY
    if "shared memory" in text:  # of a loader's worker; a container has 64 MB by default
        return (
            "too little shared memory for the workers; start the container with --ipc=host, or use "
            "--workers 0"
        )
    if "DataLoader worker" in text:  # the system kills one when memory is short
        return f"a process that loads photos was killed ({printable(text)}); {OUT_OF_MEMORY}"
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"--compile failed: {printable(text, 200)}; leave it out, or install a C++ compiler"
    if dist.is_initialized():
        return f"another rank was lost, or {printable(text, 300)}"
    return None


def run(main: Callable[[], int]) -> None:
    """Call main, note the signals meanwhile, and end the process with its code.

    Loader workers ignore these signals, and Python waits for its children before it ends. So they
    are killed here; otherwise a run that failed would never end. torch's handler of SIGCHLD is
    removed first: it raises an error as soon as one worker is dead, and the others would live on.
    """
    prepare_streams()
    for each in STOPPING:
        if signal.getsignal(each) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(each, note)
    try:
        sys.exit(main())
    finally:
        if hasattr(signal, "SIGCHLD"):  # Windows has none
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for child in multiprocessing.active_children():
            child.kill()


def prepare_streams() -> None:
    """Open stdout and stderr again if whoever started the program has closed them, so that no other
    file takes their number; have stdout escape letters that the terminal does not have."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))
    sys.stdout.reconfigure(errors="backslashreplace")


def note(number: int, frame: object) -> None:
    """Remember the first signal; the next one ends the process."""
    global received
    received = number
    for each in STOPPING:
        if signal.getsignal(each) == note:
            signal.signal(each, signal.SIG_DFL)
    if sys.platform != "win32":
        for child in multiprocessing.active_children():
            with contextlib.suppress(OSError):  # it has just ended
                os.kill(child.pid, signal.SIGCONT)  # or the step would wait for a suspended one
    with contextlib.suppress(OSError):  # nobody reads it any more
        os.write(2, b"\nstopping after this step; a second one stops at once\n")


def ignore(worker: int) -> None:
    """For loader workers: Ctrl-C reaches them too, but they end when their run does, also if the
    run was killed while the workers were suspended."""
    for each in STOPPING:
        signal.signal(each, signal.SIG_IGN)
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
