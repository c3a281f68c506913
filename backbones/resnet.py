"""ResNet: the backbone of ML-GCN, images (B, 3, H, W) in [0, 1] -> features (B, D), D = 2048.

Source: K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, Table 1. Names of
parameters are torchvision's, so its released files load strictly once `fc.*`, the classifier, is
taken out. As there, the 3x3 of a Bottleneck has the stride (in He et al. its first 1x1).

    stage    output at 224 px   block        101   planes   stride
    stem     64 x 112 x 112     conv 7x7                    2
             64 x 56 x 56       max 3x3                     2
    layer1   256 x 56 x 56      Bottleneck   3     64       1
    layer2   512 x 28 x 28      Bottleneck   4     128      2
    layer3   1024 x 14 x 14     Bottleneck   23    256      2
    layer4   2048 x 7 x 7       Bottleneck   3     512      2

A Bottleneck returns 4 x planes channels. The input is RGB divided by 255, as for TResNet;
`forward_features` subtracts ImageNet's mean and divides by its standard deviation.
"""

import copy
import itertools

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tresnet import pooled


def fused(backbone: nn.Module) -> nn.Module:
    """A copy in eval mode with every norm merged into the convolution before it in its module.
    Weights are stored in channels_last."""
    folded = copy.deepcopy(backbone).eval()
    for module in list(folded.modules()):
        for (name, conv), (follower, norm) in itertools.pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(conv, norm))
                setattr(module, follower, nn.Identity())
    return folded.to(memory_format=torch.channels_last)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1, each with batch norm, added to the shortcut; ReLU after the addition."""

    expansion = 4

    def __init__(self, c_in: int, planes: int, stride: int):
        super().__init__()
        c_out = planes * self.expansion
        self.conv1 = nn.Conv2d(c_in, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, c_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.downsample = nn.Identity()
        if stride != 1 or c_in != c_out:
            projection = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(c_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))  # (B, planes, h, w)
        y = F.relu(self.bn2(self.conv2(y)))  # (B, planes, h / stride, w / stride)
        y = self.bn3(self.conv3(y))  # (B, 4 planes, h / stride, w / stride)
        return F.relu(y + self.downsample(x))


class ResNet(nn.Module):
    """images (B, 3, H, W) in [0, 1] -> features (B, D), D = `num_features`, after `pool`.

    pool is "avg" (He et al.) or "max" (ML-GCN: each channel's largest activation). H and W are any.
    """

    def __init__(self, layers: tuple[int, int, int, int], pool: str = "avg"):
        super().__init__()
        self.pool = pool
        # ImageNet's, with which torchvision's weights were trained; its files do not hold them.
        for name, rgb in [("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))]:
            self.register_buffer(name, torch.tensor(rgb).view(3, 1, 1), persistent=False)
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        c_in = 64
        for i, blocks in enumerate(layers):
            stage = []
            for j in range(blocks):
                stage.append(Bottleneck(c_in, 64 * 2**i, stride=2 if i > 0 and j == 0 else 1))
                c_in = 64 * 2**i * Bottleneck.expansion
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
        self.num_features = c_in
        for module in self.modules():  # torchvision's; batch norm stays at PyTorch's 1 and 0
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """The feature map before pooling, (B, D, H / 32, W / 32) rounded up."""
        x = ((images - self.mean) / self.std).to(self.conv1.weight.dtype)
        x = F.relu(self.bn1(self.conv1(x)))  # (B, 64, H / 2, W / 2)
        x = F.max_pool2d(x, 3, stride=2, padding=1)  # (B, 64, H / 4, W / 4)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return pooled(self.forward_features(images), self.pool)  # (B, D)

    fold = fused  # the deploy form


def resnet101(pool: str = "avg") -> ResNet:
    """D = 2048; 42,500,160 parameters."""
    return ResNet((3, 4, 23, 3), pool)
