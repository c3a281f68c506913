"""The models that one table shows: those of a run, loaded, and whether they fit each other and val.

A single model, and what its file must hold, is in trained_model.py.
"""

from pathlib import Path

import torch

import data
from backbones import fetch_weights, load_released
from iml_gcn import Model, count_parameters
from reports.trained_model import load_checked
from runtime import checkpoints
from runtime.folder import PHOTOS, START, VAL_PHOTOS, Folder, check_settings

MODELS = {  # our models' file names, in the order of the tables
    "backbone": "direct (ASL)",
    "gcn-word": "IML-GCN, F_W",
    "gcn-image": "IML-GCN, F_I",
    "gcn-pca": "IML-GCN, F_PCA",
    "gcn-random": "IML-GCN, random nodes",  # ours, a control
}


def models(
    folder: Folder, val: data.Split, image_size: int, path: str | None, backbone: str, pool: str
) -> dict[str, tuple[Model, dict]]:
    """Name -> model and the start of its report: those of a run, or the one of `path`.

    The rows of a table have to be of one run, or it is a ValueError: they have the same labels,
    image size and training photos, a GCN started where the backbone beside it began or ended, and
    none was trained on photos of `val`.
    """
    names = [name for name in MODELS if (folder / f"{name}.pt").is_file()]
    if path:
        names = ["evaluated"]
    if not names:
        raise FileNotFoundError(f"no model in {folder.path}; run --phase backbone or all first")
    loaded, first_settings, first_backbones = {}, {}, ()
    for name in names:
        file = path or folder / f"{name}.pt"
        model, checkpoint = load(file, folder, image_size, backbone, pool, released=bool(path))
        settings = checkpoint.get("settings")
        if not isinstance(settings, dict):  # of a released file, or a crafted one
            settings = {}
        advice = "choose --val-photos that it has not seen, or train it again with --fresh"
        check_unseen(file, checkpoint, val, advice)
        if not loaded:  # the first is phase backbone's: where it began, and where it ended
            first_settings = settings
            first_backbones = settings.get(START), checkpoint.get("backbone_id")
        same_photos = settings.get(PHOTOS) == first_settings.get(PHOTOS)
        if settings.get(START) not in first_backbones or not same_photos:
            raise ValueError(
                f"{file} and {names[0]}.pt are of different runs: other training photos, "
                "or another backbone to start from; train one of them again, with --fresh"
            )
        report = {"label": MODELS.get(name, str(file)), "parameters": count_parameters(model)}
        keys = "image_size", "epochs", "settings", "backbone_id", "calibration", "threshold"
        report |= {key: checkpoint[key] for key in keys if key in checkpoint}
        loaded[name] = model, report
    return loaded


def load(
    file: str | Path, folder: Folder, image_size: int, backbone: str, pool: str, released: bool
) -> tuple[Model, dict]:
    """A model of ours for these labels and this image size, and its checkpoint. With `released`,
    the file may also be a released one for `backbone` with `pool`."""
    if released and "classes" not in checkpoints.read_checkpoint(fetch_weights(file)):
        model = load_released(backbone, pool, str(file), folder.classes)
        return model, {"classes": folder.classes, "image_size": image_size}
    model, checkpoint = load_checked(file, backbone)
    expected = {}
    if "settings" in checkpoint:
        expected["image-size"] = image_size
    advice = f"pass --image-size {checkpoint.get('image_size')}, as all rows are of one size"
    check_settings(file, checkpoint, folder.classes, expected, advice)
    return model, checkpoint


def was_trained_on(split: data.Split, report: dict) -> bool:
    """Whether a model, by the report of `models`, was trained on these photos and labels."""
    settings = report.get("settings")
    return isinstance(settings, dict) and settings.get(PHOTOS) == split.id()


def check_unseen(file: str | Path, checkpoint: dict, val: data.Split, advice: str) -> None:
    """A ValueError, which ends with the advice, if a model was trained on photos of val. A run that
    itself had photos in both train and val (it warned) is accepted."""
    training_photos, settings = checkpoint.get("training_photos"), checkpoint.get("settings")
    if not isinstance(training_photos, torch.Tensor):
        return
    if isinstance(settings, dict) and settings.get(VAL_PHOTOS) == val.id():
        return
    ids, by_content = val.photo_ids, checkpoint.get("known_by_content")
    if by_content is (not val.known_by_content):  # older files do not say how they know photos
        ids = data.ids_of(val.paths, by_content)
    count = int(torch.isin(ids, training_photos).sum())
    if count:
        raise ValueError(
            f"{file} was trained on {count:,} of the {len(val):,} val photos, so its numbers would "
            f"be too high; {advice}"
        )
