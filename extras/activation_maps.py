"""Where in a photo a label's score comes from: class activation maps (Zhou et al., CVPR 2016).

How they are drawn is `pictures.py`'s affair.
"""

import torch
from torch import nn

from iml_gcn import Model


def maps_exist(model: Model) -> bool:
    """Whether a map's mean is the logit: of mean pooling and a linear head, calibrated or not. An
    IML-GCN's head is linear once its GCN is computed."""
    head = getattr(model.head, "head", model.head)
    return getattr(model.backbone, "pool", "") == "avg" and type(head) is nn.Linear


def activation_maps(model: Model, images: torch.Tensor) -> torch.Tensor:
    """Logits (B, n, h, w) of every place in the images (B, 3, H, W): the linear head and the mean
    over the places change their order."""
    features = model.backbone.forward_features(images).float()  # (B, D, h, w)
    return model.head(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (B, n, h, w)
