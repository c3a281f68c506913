"""run.py as a user starts it, but for two things: COCO's server is another one, and what the run
does, with its seconds and memory, is told through a pipe, a line of JSON each.

    REHEARSAL_SERVER=URL REHEARSAL_PIPE=FD python tests/rehearsal_run.py <arguments of run.py>

Nothing here decides anything, and nothing is waited for: the test that reads the pipe kills.
"""

import functools
import json
import multiprocessing
import os
import resource
import sys
import time
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import run
from datasets import catalogue, coco_download
from preflight import forecast
from reports import calibration, graph_picture, metrics_files, mistakes, pictures, results, verdict
from runtime import download, signals, terminal

coco_download.SERVER = os.environ["REHEARSAL_SERVER"]
PIPE = int(os.environ["REHEARSAL_PIPE"])
EVERY = 50  # files that are unpacked between two lines


def tell(at: str, **what) -> None:
    line = json.dumps({"at": at, "time": time.monotonic(), **what}) + "\n"
    os.write(PIPE, line.encode())


def peak(process: int | str = "self") -> float:
    """MB of the most memory that a process ever had, or had since `reset_peak`."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def peaks_of_workers() -> list[float]:
    return [peak(child.pid) for child in multiprocessing.active_children()]


def cpu_seconds() -> float:
    """Of this process, its threads and its workers, those that have ended too."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    ticks = 0
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])  # in user mode, in the kernel
    of_workers = ticks / os.sysconf("SC_CLK_TCK") + ended.ru_utime + ended.ru_stime
    return time.process_time() + of_workers


class Peaks:
    """Peak memory of parts of the run that may lie within each other."""

    def __init__(self):
        self.open = []  # of each part that has begun: its peak so far

    def note(self) -> None:
        now = peak()
        self.open = [max(each, now) for each in self.open]
        Path("/proc/self/clear_refs").write_text("5")  # counts from here on

    def begin(self) -> None:
        self.note()
        self.open.append(0.0)

    def end(self) -> float:
        self.note()
        return self.open.pop()


peaks = Peaks()


def told(place, name: str, what: str) -> None:
    """Have a function tell when it begins, and at its end how long it took. In `what`, {0} is its
    first argument, or the last part of it if that is a path."""
    original = getattr(place, name) if not isinstance(place, dict) else place[name]

    @functools.wraps(original)
    def wrapped(*arguments, **options):
        names = [str(each).split("/")[-1] for each in arguments if isinstance(each, str | Path)]
        at = what.format(*names)
        tell(at, done=0)
        peaks.begin()
        start, cpu_start = time.monotonic(), cpu_seconds()
        try:
            return original(*arguments, **options)
        finally:
            seconds, cpu = time.monotonic() - start, cpu_seconds() - cpu_start
            tell(at, seconds=seconds, cpu=cpu, peak=peaks.end())

    if isinstance(place, dict):
        place[name] = wrapped
    else:
        setattr(place, name, wrapped)


told(run, "load_data", "all before training")
told(forecast, "announce", "forecast")
told(run, "label_graph", "label graph")
told(run, "checkpoint_of", "thresholds")
told(run, "model_settings", "settings")
told(catalogue, "read_labels", "reading {0}")
told(coco_download, "unpack", "unpacking {0}")
told(download, "fetch", "fetching {1}")
told(calibration, "fit", "calibration")
told(graph_picture, "save", "graph.png")
told(metrics_files, "save_numbers", "numbers {0}")
told(verdict, "judge", "verdict")
told(results, "save", "results")
told(results, "full_page", "results.md")
told(pictures, "save_judged", "results.jpg")
told(mistakes, "save", "mistakes.jpg")
for phase in run.PHASES:
    told(run.PHASES, phase, f"phase {phase}")

advance, close, extract = (
    terminal.Progress.advance,
    terminal.Progress.close,
    zipfile.ZipFile.extract,
)


def told_advance(self, count):
    answer = advance(self, count)
    tell(self.what, done=self.done / max(self.total, 1e-9))
    return answer


def told_close(self):
    answer = close(self)
    seconds = time.monotonic() - self.start
    tell(f"{self.what}, all", seconds=seconds, items=self.done, workers=peaks_of_workers())
    return answer


def told_extract(self, entry, path):
    self.extracted = getattr(self, "extracted", 0) + 1
    if self.extracted % EVERY == 1 or len(self.filelist) < EVERY:
        tell(f"unpacking {Path(self.filename).name}", done=self.extracted / len(self.filelist))
    return extract(self, entry, path)


terminal.Progress.advance, terminal.Progress.close = told_advance, told_close
zipfile.ZipFile.extract = told_extract

tell("started")
signals.run(run.main)
