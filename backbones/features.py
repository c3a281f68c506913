"""The features of a backbone that is not trained: computed once, kept in the run's folder.

Symbols: M images in a split, D feature size.
"""

import dataclasses

import numpy as np
import torch

import data
from iml_gcn import Model
from runtime import ranks
from runtime.folder import PHOTOS, Folder
from runtime.journal import Pass
from runtime.loading import Loader


@torch.inference_mode()
def features(
    backbone: torch.nn.Module,
    splits: tuple[data.Split, data.Split],
    batches: list[Loader],
    folder: Folder,
    made_with: dict,
    skip_bad: bool,
) -> list[data.Split]:
    """Train and val with F_GAP (M, D) of their photos, not augmented, from features-*.pt.

    A file is used again if it was made with the same settings; photos that cannot be read are left
    out where `skip_bad`.
    """
    model = Model(backbone, torch.nn.Identity()).fold().to(batches[0].device)
    found = []
    for name, split, loader in zip(("train", "val"), splits, batches, strict=True):
        file, settings = f"features-{name}.pt", made_with | {PHOTOS: split.id()}
        if not folder.done(file, settings, remake=True):
            F_GAP = torch.zeros(len(split), backbone.num_features)  # (M, D)
            photos = Pass(loader, f"features {name}", skip_bad)
            for images, _, rows in photos:
                F_GAP[rows] = model(images).float().cpu()
            folder.save(file, {"features": ranks.total(F_GAP), "read": photos.read}, settings)
        stored = folder.load(file, "backbone", settings)
        split = dataclasses.replace(split, features=stored["features"])
        found.append(split.select(np.flatnonzero(stored["read"])))
    return found
