"""A trained model as an .onnx or .pt2 file for other programs: what predict.py --export makes.

The file maps "images" (B, 3, S, S), float32 RGB in [0, 1] with no mean or deviation taken, to
"scores" (B, n), after the sigmoid, for any B: what a user ranks and compares with a threshold.
Everything else is in its metadata: `metadata_props` of ONNX, the extra file metadata.json of .pt2.
docs/export.md shows how to read both.
"""

import io
import json
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

from iml_gcn import Model
from runtime.terminal import printable, tell
from runtime.writing import cannot_write, explained

TOLERANCE = 1e-4  # on scores [ours]


@torch.no_grad()
def export(path: Path, model: Model, checkpoint: dict, photos: Iterable[torch.Tensor]) -> None:
    """Write a model in its deploy form, read the file back and compare its scores on the photos.

    `photos` are batches of images (B, 3, S, S) in [0, 1]. A file that differs by more than
    TOLERANCE in a score is an error and is not left behind.
    """
    S = checkpoint["image_size"]
    deploy = nn.Sequential(model.backbone, model.head, nn.Sigmoid())
    keys = "classes", "image_size", "threshold", "calibration", "backbone"
    metadata = {key: checkpoint[key] for key in keys}  # the calibration is in the scores already
    metadata["images"] = (
        f"float32 (B, 3, {S}, {S}), RGB in [0, 1]; photos upright by EXIF, laid on white where "
        "transparent, squashed by Pillow's BILINEAR, which averages where it shrinks (OpenCV's "
        "INTER_AREA does, its INTER_LINEAR does not)"
    )
    write = write_onnx if path.suffix == ".onnx" else write_pt2
    if path.exists() and not path.is_file():
        raise ValueError(f"--export {printable(path, 200)} is not a file; choose another name")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(dir=path.parent)
    with temporary as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about its own internals
        shape = {0: torch.export.Dim("batch")}
        program = torch.export.export(deploy, (torch.rand(2, 3, S, S),), dynamic_shapes=(shape,))
        try:
            compute = write(Path(folder, path.name), program, metadata)
        except OSError as error:
            raise cannot_write(path, error) from error
        worst, count = 0.0, 0
        for images in photos:
            for part in (images, images[:1]):  # batches of several sizes
                difference = (compute(part) - model(part).sigmoid()).abs().max().item()
                if math.isnan(difference):
                    difference = math.inf
                worst = max(worst, difference)
            count += len(images)
        if not count:
            raise ValueError("no photo to check the export on could be read; nothing was written")
        if worst > TOLERANCE:
            raise ValueError(
                f"scores of the exported model differ from PyTorch's by {worst:.1e}, expected at "
                f"most {TOLERANCE:.0e}; nothing was written"
            )
        with explained(path):
            os.replace(Path(folder, path.name), path)
    tell(
        f"{printable(path, 200)}: {len(checkpoint['classes'])} labels, {S} px; largest difference "
        f"from PyTorch's scores {worst:.1e} on {count} images"
    )


def write_pt2(file: Path, program: ExportedProgram, metadata: dict) -> Callable:
    """Returns the function images -> scores that is read back from the file."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine's files
    content = io.BytesIO()  # torch would end the process on a full disk
    torch.export.save(program, content, extra_files={"metadata.json": json.dumps(metadata)})
    file.write_bytes(content.getbuffer())
    return torch.export.load(file).module()


def write_onnx(file: Path, program: ExportedProgram, metadata: dict) -> Callable:
    """Returns the function images -> scores that onnxruntime reads back from the file."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch.onnx needs it)
    except ImportError as error:
        raise ValueError(f"{error}; pip install onnx onnxscript onnxruntime") from error
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is missing
    names = {"input_names": ["images"], "output_names": ["scores"]}
    names["dynamic_shapes"] = ({0: "batch"},)  # the axis's name in the file
    exported = torch.onnx.export(program, dynamo=True, verbose=False, **names)
    for node in exported.model.graph:
        node.metadata_props.clear()  # paths of this machine's files
    for key, value in metadata.items():
        exported.model.metadata_props[key] = value if type(value) is str else json.dumps(value)
    exported.save(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
