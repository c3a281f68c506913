"""Power-normalised features of a frozen backbone: signed roots, of length 1 (Perronnin, Sanchez and
Mensink, "Improving the Fisher Kernel", ECCV 2010); here also centred. Nothing here is trained.

Symbols: B images in a batch, D feature size.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn


def signed_roots(features: torch.Tensor) -> torch.Tensor:
    """sign(x) sqrt|x|, entry by entry: strong features count less."""
    return features.sign() * features.abs().sqrt()


class UnitFeatures(nn.Module):
    """A frozen backbone with features (B, D) whose roots are centred and scaled to length 1
    (difference 32).

    `mean_root` (D,) is that of the training photos. In a map, every place gets its share of the
    root, and all are divided by the same length, so that the mean of a linear head's map is still
    its logit.
    """

    def __init__(self, backbone: nn.Module, mean_root: torch.Tensor | None = None):
        super().__init__()
        self.backbone, self.num_features = backbone, backbone.num_features
        self.pool = getattr(backbone, "pool", "")
        if mean_root is None:
            mean_root = torch.zeros(self.num_features)
        self.register_buffer("mean_root", mean_root)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.scaled(self.backbone(images))  # (B, D)

    def scaled(self, features: torch.Tensor) -> torch.Tensor:
        """The backbone's features (B, D) as this one's."""
        return F.normalize(signed_roots(features) - self.mean_root)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """The feature map (B, D, h, w). With mean pooling its mean over places is `forward`."""
        places = self.backbone.forward_features(images).float()  # (B, D, h, w)
        pooled = places.mean((2, 3), keepdim=True)  # x (B, D, 1, 1), whose root is x / sqrt|x|
        shares = places / pooled.abs().sqrt().clamp(min=1e-12)  # (B, D, h, w), their mean the root
        centred = shares - self.mean_root[:, None, None]
        length = centred.mean((2, 3), keepdim=True).norm(dim=1, keepdim=True)  # (B, 1, 1, 1)
        return centred / length.clamp(min=1e-12)

    def fold(self) -> "UnitFeatures":
        """The deploy form, a copy in eval mode."""
        if hasattr(self.backbone, "fold"):
            folded = self.backbone.fold()
        else:
            folded = copy.deepcopy(self.backbone)
        return UnitFeatures(folded, self.mean_root.clone()).eval()
