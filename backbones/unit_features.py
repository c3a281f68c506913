"""Features that are centred and of length 1, from a frozen backbone. Nothing of it is trained.

Symbols: B images in a batch, D feature size.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn


class UnitFeatures(nn.Module):
    """A frozen backbone with features (B, D) that are centred and of length 1 (difference 32).

    `mean` (D,) is that of the training photos. All features of a map are divided by one length,
    that of their mean over the map, so that the mean of a linear head's map is still its logit.
    """

    def __init__(self, backbone: nn.Module, mean: torch.Tensor | None = None):
        super().__init__()
        self.backbone, self.num_features = backbone, backbone.num_features
        self.pool = getattr(backbone, "pool", "")
        self.register_buffer("mean", torch.zeros(self.num_features) if mean is None else mean)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.backbone(images) - self.mean)  # (B, D)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """The feature map (B, D, h, w). With mean pooling its mean over places is `forward`."""
        centred = self.backbone.forward_features(images).float() - self.mean[:, None, None]
        length = centred.mean((2, 3), keepdim=True).norm(dim=1, keepdim=True)  # (B, 1, 1, 1)
        return centred / length.clamp(min=1e-12)

    def fold(self) -> "UnitFeatures":
        """The deploy form, a copy in eval mode."""
        if hasattr(self.backbone, "fold"):
            folded = self.backbone.fold()
        else:
            folded = copy.deepcopy(self.backbone)
        return UnitFeatures(folded, self.mean.clone()).eval()
