"""Freezing: features of a backbone that is not trained, computed once and kept in the run's folder.

A split that has features also has the backbone that made them. `part_for` is the one place that
decides between a whole model on photos and its head on features. `run.py` trains on them.

Symbols: M images in a split, D feature size.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from backbones.unit_features import UnitFeatures, signed_roots
from data import Split
from iml_gcn import Model
from runtime import checkpoints, ranks
from runtime.folder import PHOTOS, START, Folder
from runtime.journal import Pass
from runtime.loading import Loader


def id_of(backbone: nn.Module) -> str:
    """An id of a backbone: equal if weights and running statistics are equal."""
    return checkpoints.content_id(*backbone.state_dict().values())


def part_for(model: Model, split: Split) -> tuple[Model, Split]:
    """The part of a model that a split can feed, and that split: the head with features, if the
    split has features of this very backbone; otherwise the whole model with photos."""
    if split.features is None or id_of(split.backbone) != id_of(model.backbone):
        return model, replace(split, features=None, backbone=None)
    return Model(nn.Identity(), model.head), split


@torch.inference_mode()
def with_features(
    name: str,
    split: Split,
    backbone: nn.Module,
    batches: Loader,
    folder: Folder,
    settings: dict,
    skip_bad: bool,
) -> Split:
    """A split with F_GAP (M, D) of its photos, not augmented, from features-<name>.pt.

    The file is used again if it was made by the same backbone from the same photos with the same
    `settings`. Photos that cannot be read are left out with `skip_bad`, else they are a ValueError.
    """
    file, settings = f"features-{name}.pt", settings | {START: id_of(backbone), PHOTOS: split.id()}
    stored = folder.reusable(file, settings)
    if stored is None or not (skip_bad or stored["read"].all()):
        model = Model(backbone, nn.Identity()).fold().to(batches.device)
        F_GAP = torch.zeros(len(split), backbone.num_features)  # (M, D)
        photos = Pass(batches, f"features {name}", skip_bad)
        for images, _, rows in photos:
            F_GAP[rows] = model(images).float().cpu()
        stored = {"features": ranks.total(F_GAP), "read": photos.read}
        folder.save(file, stored, settings)
    else:
        print(f"features {name}: computed before ({file})")
    split = replace(split, features=stored["features"], backbone=backbone)
    return split.select_readable(np.flatnonzero(stored["read"]))


def unit_features(train: Split, val: Split) -> tuple[Split, Split]:
    """Both splits with `UnitFeatures`, centred on the training photos."""
    backbone = UnitFeatures(train.backbone, signed_roots(train.features).mean(0))
    return tuple(
        replace(split, features=backbone.scaled(split.features), backbone=backbone)
        for split in (train, val)
    )
