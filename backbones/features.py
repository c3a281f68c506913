"""Freezing: features of a backbone that is not trained, computed once and kept in the run's folder.

A split that has features also has the backbone that made them. `part_for` is the one place that
decides between a whole model on photos and its head on features. `run.py` trains on them.

Symbols: M images in a split, D feature size.
"""

import math
import os
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from backbones.unit_features import UnitFeatures, signed_roots
from data import Split, int64_digest
from iml_gcn import Model
from runtime import checkpoints, fresh, ranks
from runtime.folder import START, Folder
from runtime.journal import Pass


def id_of(backbone: nn.Module) -> str:
    """An id of a backbone: equal if weights and running statistics are equal."""
    return checkpoints.content_id(*backbone.state_dict().values())


def part_for(model: Model, split: Split) -> tuple[Model, Split]:
    """The part of a model that a split can feed, and that split: the head with features, if the
    split has features of this very backbone; otherwise the whole model with photos."""
    if split.features is None or id_of(split.backbone) != id_of(model.backbone):
        return model, replace(split, features=None, backbone=None)
    return Model(nn.Identity(), model.head), split


class FeatureStore:
    """features.pt: the features of each photo that this backbone has seen.

    So an edit of the labels, another split or more photos do not compute them again. The whole file
    is used only if it was made by the same backbone with the same `settings`. Another one is a
    ValueError; with `ignore_others` it stays where it is, and is not used. Photos are known by
    their content; photos of a split that is not `known_by_content`, by their path and size.
    """

    FILE = "features.pt"

    def __init__(
        self, backbone: nn.Module, folder: Folder, settings: dict, ignore_others: bool = False
    ):
        self.backbone, self.settings = backbone, settings | {START: id_of(backbone)}
        self.folder = Folder(folder.path, classes=[])  # features do not depend on the labels
        self.photos = torch.zeros(0, dtype=torch.int64)  # (K,)
        self.features = torch.zeros(0, backbone.num_features)  # (K, D)
        read = self.folder.reusable if ignore_others else self.folder.begun
        stored = read(self.FILE, self.settings)
        if stored and is_sound(stored, backbone.num_features):
            self.photos, self.features = stored["photos"], stored["features"]

    @classmethod
    def move_others(cls, folder: Folder, settings: dict) -> None:
        """Move a file that was made with other settings into before-fresh/."""
        if ranks.rank() == 0 and Folder(folder.path, []).reusable(cls.FILE, settings) is None:
            fresh.move(folder.path, cls.FILE)
        ranks.wait()

    def places(self, split: Split) -> np.ndarray:
        """(M,) the row of each photo in `features`, or -1 where it has none."""
        place_of = {photo: place for place, photo in enumerate(self.photos.tolist())}
        return np.array([place_of.get(photo, -1) for photo in keys_of(split)])

    def missing(self, split: Split) -> np.ndarray:
        """The rows of a split's photos that have no features yet."""
        return np.flatnonzero(self.places(split) < 0)

    @torch.inference_mode()
    def compute(self, split: Split, missing: np.ndarray, photos: Pass, batch_size: int) -> None:
        """Add the features of the `missing` rows of a split, not augmented, and keep those that are
        computed even if the pass over these photos is stopped.

        `batch_size` is that of the whole batches of all ranks.
        """
        model = Model(self.backbone, nn.Identity()).fold().to(photos.loader.device)
        F_GAP = torch.zeros(len(missing), self.backbone.num_features)  # (m, D), m photos missing
        # Keys of the whole split, since a part of it may be known by other ones.
        keys = torch.tensor(keys_of(split))[torch.from_numpy(missing)]
        photos_before, features_before = self.photos, self.features

        def save(read: torch.Tensor) -> None:
            of_all_ranks = ranks.total(F_GAP.clone())[read]
            self.photos = torch.cat([photos_before, keys[read]])
            self.features = torch.cat([features_before, of_all_ranks])
            content = {"photos": self.photos, "features": self.features}
            self.folder.save(self.FILE, content, self.settings)

        size = math.ceil(batch_size / ranks.size())  # of this rank's part
        for images, _, rows in photos.batches(save):
            # A batch of another size may be computed in another order. So all have one size, and a
            # photo's features are the same whichever others were missing.
            filled = images.new_zeros(size, *images.shape[1:])  # (size, 3, S, S)
            filled[: len(rows)] = images
            F_GAP[rows] = model(filled)[: len(rows)].float().cpu()

    def with_features(self, split: Split) -> Split:
        """The split with its F_GAP (M, D). Photos without features are left out, since they could
        not be read."""
        places = self.places(split)
        read = np.flatnonzero(places >= 0)
        if not len(read):
            raise ValueError("no photo can be read; check the image folder")
        features = self.features[places[read]]
        return replace(split.select_readable(read), features=features, backbone=self.backbone)


def is_sound(stored: dict, D: int) -> bool:
    """Whether a file has ids (K,) and finite features (K, D)."""
    photos, features = stored.get("photos"), stored.get("features")
    if not (isinstance(photos, torch.Tensor) and isinstance(features, torch.Tensor)):
        return False
    kinds = photos.dtype, features.dtype, photos.layout, features.layout
    if kinds != (torch.int64, torch.float32, torch.strided, torch.strided) or photos.ndim != 1:
        return False
    return features.shape == (len(photos), D) and bool(features.isfinite().all())


def keys_of(split: Split) -> list[int]:
    """What each photo is known by in features.pt: its content, or its path and size."""
    if split.known_by_content:
        return split.photo_ids.tolist()
    return [
        int64_digest(f"{os.path.abspath(path)} {os.path.getsize(path)}") for path in split.paths
    ]


def unit_features(train: Split, val: Split) -> tuple[Split, Split]:
    """Both splits with `UnitFeatures`, centred on the training photos."""
    backbone = UnitFeatures(train.backbone, signed_roots(train.features).mean(0))
    return tuple(
        replace(split, features=backbone.scaled(split.features), backbone=backbone)
        for split in (train, val)
    )
