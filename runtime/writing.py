"""Files written whole or not at all: under a temporary name, synced, then renamed.

`reading.py` is the counterpart. What a file of tensors holds is in `checkpoints.py`, what a cell of
a table may hold in `csv_table.py`.
"""

import contextlib
import errno
import io
import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from PIL import Image

from runtime.terminal import printable

TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.tmp$")  # the end of a temporary name


@contextlib.contextmanager
def replacing(path: Path, mode: str = "wb", **options) -> Iterator[IO]:
    """An open file that replaces `path` when the block ends without an error. Until then, and if
    there is an error, the old file stays as it is.

    `mode` and `options` are open's. Write inside `explained`, which names the file if that fails.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")  # no other process's
    with explained(path):
        file = open(temporary, mode, **options)
    try:
        yield file
        with explained(path):
            file.flush()
            os.fsync(file.fileno())
            file.close()  # Windows cannot rename an open file
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # a full disk refuses what is left in the buffer
            file.close()
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of processes that were killed. Call it only where no other process
    writes into the folder."""
    for path in folder.glob("*.tmp"):
        if TEMPORARY.search(path.name):
            path.unlink()


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns an error of writing into an OSError that names the file, says what is there now, and
    what to do."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save's, on a full disk
        raise cannot_write(path, error) from error


# Errors that stay until another place is chosen.
OF_THE_PLACE = {errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR}


def cannot_write(path: Path, error: OSError | RuntimeError) -> OSError:
    state = "its old content is kept" if path.is_file() else "nothing was written"
    reason = getattr(error, "strerror", None) or "the disk is full, or was taken away"
    advice = "make room if the disk is full, and start again"
    if getattr(error, "errno", None) in OF_THE_PLACE:
        advice = "choose a place that can be written"
    return OSError(f"cannot write {printable(path, 200)} ({reason}); {state}; {advice}")


def save_text(path: Path, text: str) -> None:
    with replacing(path) as file, explained(path):
        file.write(text.encode())


def save_image(path: Path, image: Image.Image, form: str, **options) -> None:
    """Write a picture, which Pillow makes in memory: it would not notice a full disk."""
    content = io.BytesIO()
    image.save(content, form, **options)
    with replacing(path) as file, explained(path):
        file.write(content.getvalue())


def save_json(path: Path, value: object) -> None:
    save_text(path, json.dumps(plain(value), indent=1))


def plain(value: object) -> object:
    """The value as JSON can hold it: paths become text, NaN and infinity become null."""
    return json.loads(json.dumps(value, default=str), parse_constant=lambda name: None)
