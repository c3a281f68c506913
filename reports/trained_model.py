"""A trained model from its file: which file of a run's folder, and whether what it says is sound.

A checkpoint may come from anywhere, so everything that is used of it is checked here. predict.py
reads the photos.

Symbols: n labels, D image feature size, S the side images are squashed to.
"""

import os
from pathlib import Path

import torch

from backbones import load_model, parameters_of
from iml_gcn import Model
from reports.calibration import LARGEST_SLOPE, Calibrated
from runtime import photo_files
from runtime.reading import ANY, LABEL, Kind, check, check_once, read_json
from runtime.terminal import printable

THRESHOLD = 0.8  # predict.py's where a checkpoint has none: ASL's; difference 6
LARGEST = 8192  # px; a photo of this side takes 0.8 GB [ours]


def number(low: float, high: float) -> Kind:
    def fits(value: object) -> bool:
        return type(value) in (int, float) and low <= value <= high  # NaN is not

    return Kind(f"a number from {low:g} to {high:g}", fits)


SIZE = Kind(f"a whole number from 1 to {LARGEST}", lambda v: type(v) is int and 1 <= v <= LARGEST)
SCHEMA = {
    "classes": [LABEL],
    "image_size": SIZE,
    "threshold": number(0, 1),
    "calibration": [number(-LARGEST_SLOPE, LARGEST_SLOPE)],
    "operating_points": [[number(0, 1e9)]],
    "val_photos": Kind("a whole number", lambda v: type(v) is int and 0 <= v <= 10**9),
    "known_by_content": Kind("true, false or none", lambda v: v is None or type(v) is bool),
}
DEFAULTS = {
    "threshold": THRESHOLD,
    "calibration": [1.0, 0.0],
    "operating_points": [],
    "val_photos": 0,  # not known
    "known_by_content": None,  # how training_photos are known; not known of older files
}


def load(path: Path) -> tuple[Model, dict]:
    """The model, whose logits are calibrated, and what else its checkpoint says."""
    model, checkpoint = load_checked(path)
    model.head = Calibrated(model.head, *checkpoint["calibration"])
    unused = "state_dict", "settings", "training_photos", "known_by_content"
    return model, {key: value for key, value in checkpoint.items() if key not in unused}


def load_checked(path: str | Path, backbone: str = "") -> tuple[Model, dict]:
    """A model and its whole checkpoint; everything in it that is used was checked. `backbone` is
    the user's own --backbone, see `load_model`."""
    model, checkpoint = load_model(path, backbone)
    checkpoint = DEFAULTS | checkpoint
    check(checkpoint, SCHEMA, path)
    check_once(checkpoint["classes"], path, "label")
    check_numbers(path, checkpoint)
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise ValueError(
                f"{path}: the weights {printable(name)} hold numbers that are not finite; the file "
                "is damaged, or training diverged"
            )
    check_shapes(path, model, checkpoint)
    return model, checkpoint


def check_numbers(path: Path, checkpoint: dict) -> None:
    """Check what SCHEMA cannot say about calibration and operating points."""
    calibration = checkpoint["calibration"]
    if len(calibration) != 2 or calibration[0] <= 0:
        raise ValueError(
            f"{path}: calibration is {printable(calibration)}, expected a slope above 0 and an "
            "offset; the file is damaged"
        )
    for i, row in enumerate(checkpoint["operating_points"]):
        if len(row) != 4 or max(row[:3]) > 1:
            raise ValueError(
                f"{path}: operating_points[{i}] is {printable(row)}, expected threshold, precision "
                "and recall from 0 to 1, and labels per photo; the file is damaged"
            )


def check_shapes(path: Path, model: Model, checkpoint: dict) -> None:
    """A ValueError if backbone, image size, head and labels do not fit each other."""
    S, n = checkpoint["image_size"], len(checkpoint["classes"])
    try:
        parameters_of(checkpoint["backbone"], checkpoint["pool"], S)
    except (RuntimeError, ValueError) as error:
        reason = printable(str(error).split("\n")[0], 200)
        raise ValueError(f"{path}: its network takes no images of {S} px ({reason})") from error
    with torch.no_grad():
        logits = model.head(torch.zeros(1, model.backbone.num_features))  # (1, n)
    if logits.shape != (1, n):
        raise ValueError(
            f"{path} names {n} labels, its head scores {logits.shape[-1]}; the file is damaged, or "
            "was changed by hand"
        )


def models_in(path: str | Path) -> list[str]:
    """The file names of the models in a run's folder; none in other folders."""
    if not os.path.isdir(path):
        return []
    files = [*Path(path).glob("backbone.pt"), *Path(path).glob("gcn-*.pt")]
    return sorted(file.name for file in files)


def model_file(path: str | Path) -> tuple[Path, str]:
    """The checkpoint that a path stands for: itself, or the best model of a run's folder; and why
    it is that one. The best is the one that verdict.json names, of all models that are there."""
    folder = Path(path)
    if folder.suffix in (".pt2", ".onnx"):
        raise ValueError(
            f"{folder} is an exported model, for other programs; pass the backbone.pt or gcn-*.pt "
            "that it was made from"
        )
    if not folder.is_dir():
        return folder, ""
    names = models_in(folder)
    if not names:
        raise FileNotFoundError(
            f"{folder} holds no backbone.pt or gcn-*.pt; pass a model of run.py, or its folder"
        )
    if (folder / "verdict.json").is_file():
        verdict = read_json(folder / "verdict.json", {...: ANY}, "run --phase eval again")
        use, compared = verdict.get("use"), verdict.get("models")
        if use in names and isinstance(compared, dict) and set(names) <= compared.keys():
            for name in names:
                check_is_compared(folder / name, compared[name])
            return folder / use, "the model to use, as verdict.json says"
    if len(names) == 1:
        return folder / names[0], "the only model of the folder"
    raise ValueError(
        f"{folder} holds {', '.join(names)}, and no verdict.json that compares them; pass one of "
        "them, or run --phase eval first"
    )


def check_is_compared(file: Path, model: object) -> None:
    """A ValueError if verdict.json, whose entry of this model this is, compared another file of its
    name. Verdicts of older versions do not say which one."""
    known = model.get("sha256") if isinstance(model, dict) else None
    if known is not None and known != photo_files.digest(file):
        raise ValueError(
            f"{file} is not the model that verdict.json compared; run the training command again, "
            "with --phase eval, or pass the file of a model"
        )
