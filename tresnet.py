"""TResNet: the image backbone, images (B, 3, H, W) in [0, 1] -> features (B, D).

Source: T. Ridnik et al., "TResNet: High Performance GPU-Dedicated Architecture", WACV 2021, and the
weights its authors released. Pure PyTorch: no compiled extension, no GPU needed.

    stage    output at 224 px   block        M    L (x1.2)  XL (x1.3)   planes   SE
    stem     64 x 56 x 56       conv 3x3     on 4 x 4 blocks of pixels stacked as 48 channels
    layer1   64 x 56 x 56       BasicBlock   3    4         4           64       yes
    layer2   128 x 28 x 28      BasicBlock   4    5         5           128      yes
    layer3   1024 x 14 x 14     Bottleneck   11   18        24          256      yes
    layer4   2048 x 7 x 7       Bottleneck   3    3         3           512      no

Sizes and channels are M's; L and XL widen them. A Bottleneck puts out 4 x planes. The input is RGB
divided by 255 and nothing else: no mean, no standard deviation.
"""

import copy
import re

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from runtime import lean


class ABN(nn.BatchNorm2d):
    """Activated batch norm: batch norm, then leaky ReLU; slope 1 is the identity.

    Its weights and state are those of nn.BatchNorm2d. With slope 1, at the end of a block, it is
    never in place: those weights start at 0, which cannot be inverted.
    """

    def __init__(self, channels: int, slope: float):
        super().__init__(channels)
        self.slope = slope

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.slope == 1:
            return super().forward(x)
        if lean.wanted(self):  # the line below, keeping less for backward
            return lean.norm_leaky_relu(self, x, self.slope)
        return F.leaky_relu(super().forward(x), self.slope)


class ConvABN(nn.Sequential):
    """Convolution and ABN; stride 2 is done after both, by the blur, against aliasing."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, slope: float = 1e-3):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False)
        self.bn = ABN(c_out, slope)
        if stride == 2:
            self.blur = Blur()


class Blur(nn.Module):
    """[1 2 1]^2 / 16 on every channel, reflected borders, stride 2: (H, W) -> (H / 2, W / 2),
    rounded up."""

    def __init__(self):
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", row[:, None] * row, persistent=False)  # constant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel = self.kernel.to(x.dtype).expand(x.shape[1], 1, 3, 3)
        if lean.wanted(self):  # the line below, keeping less for backward
            return lean.Blur.apply(x, kernel)
        return F.conv2d(lean.reflected(x), kernel, stride=2, groups=x.shape[1])  # x padded by 1


class SE(nn.Module):
    """Squeeze and excite: every channel is scaled by a gate computed from all channels' means."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()  # (B, C, 1, 1)
        return x * gate


def shortcut(c_in: int, c_out: int, stride: int) -> nn.Module:
    """The residual path: the identity, or where the shape changes pooling and a 1x1 convolution."""
    if stride == 1 and c_in == c_out:
        return nn.Identity()
    pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
    return nn.Sequential(pool, ConvABN(c_in, c_out, 1, slope=1))


def norms_of(*modules: nn.Module) -> list[ABN]:
    return [m for module in modules for m in module.modules() if isinstance(m, ABN)]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; SE gates their output, before the addition."""

    expansion = 1

    def __init__(self, c_in: int, planes: int, stride: int, se: bool):
        super().__init__()
        self.conv1 = ConvABN(c_in, planes, 3, stride)
        self.conv2 = ConvABN(planes, planes, 3, slope=1)
        self.se = SE(planes, max(planes // 4, 64)) if se else nn.Identity()
        self.downsample = shortcut(c_in, planes, stride)
        self.recomputes = se  # its wide end in backward; without SE that saves too little

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv2.conv(self.conv1(x))  # (B, planes, h, w)
        return F.relu_(lean.recompute(self, y, x))  # relu(self.end(y, x))

    def end(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.se(self.conv2.bn(y)).add_(self.downsample(x))  # (B, planes, h, w)

    def norms_of_end(self) -> list[ABN]:
        return norms_of(self.conv2.bn, self.downsample)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1; SE gates the narrow middle, `planes` channels, after the 3x3."""

    expansion = 4

    def __init__(self, c_in: int, planes: int, stride: int, se: bool):
        super().__init__()
        c_out = planes * self.expansion
        self.conv1 = ConvABN(c_in, planes, 1)
        self.conv2 = ConvABN(planes, planes, 3, stride)
        self.se = SE(planes, max(c_out // 8, 64)) if se else nn.Identity()
        self.conv3 = ConvABN(planes, c_out, 1, slope=1)
        self.downsample = shortcut(c_in, c_out, stride)
        self.recomputes = se  # its wide end in backward; without SE that saves too little

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv2(self.conv1(x))  # (B, planes, h, w)
        return F.relu_(lean.recompute(self, y, x))  # relu(self.end(y, x))

    def end(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.conv3(self.se(y)).add_(self.downsample(x))  # (B, 4 planes, h, w)

    def norms_of_end(self) -> list[ABN]:
        return norms_of(self.conv3, self.downsample)


def pooled(x: torch.Tensor, pool: str) -> torch.Tensor:
    """A feature map (B, D, h, w) -> features (B, D), the mean or maximum of every channel.

    They are float32 even under autocast, because the head's logits are ranked: ties cost AP.
    """
    if pool not in ("avg", "max"):
        raise ValueError(f"pool is {pool!r}, expected 'avg' or 'max'")
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x.amax((2, 3)) if pool == "max" else x.mean((2, 3))


class TResNet(nn.Module):
    """images (B, 3, H, W) in [0, 1] -> features (B, D), D = `num_features`, after `pool`.

    pool is "avg", TResNet's, or "max", each channel's largest activation (ML-GCN's choice).
    H and W are multiples of 4 and at least 32 (five halvings); anything else is a ValueError.
    """

    def __init__(self, layers: tuple[int, int, int, int], width: float = 1.0, pool: str = "avg"):
        super().__init__()
        self.pool = pool
        planes = int(64 * width)
        self.conv1 = ConvABN(48, planes, 3, slope=1e-2)  # the stem's slope, not the blocks' 1e-3
        c_in = planes
        for i, block in enumerate([BasicBlock, BasicBlock, Bottleneck, Bottleneck]):
            stage = []
            for j in range(layers[i]):
                stride = 2 if i > 0 and j == 0 else 1
                stage.append(block(c_in, planes * 2**i, stride, se=i < 3))  # no SE in the last
                c_in = planes * 2**i * block.expansion
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
        self.num_features = c_in
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As in the released code: He normal on fan-out, and every block starts as its shortcut."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")
            elif isinstance(module, BasicBlock):
                nn.init.zeros_(module.conv2.bn.weight)
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.conv3.bn.weight)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """The feature map before pooling, (B, D, H / 32, W / 32) rounded up."""
        B, C, H, W = images.shape
        if C != 3 or H % 4 or W % 4 or min(H, W) < 32:
            raise ValueError(
                f"images are (B, {C}, {H}, {W}), TResNet needs 3 channels and H and W that are "
                "multiples of 4 and at least 32; choose another --image-size"
            )
        # Space to depth: channels in the released weights' order, (row in block, column, RGB).
        x = images.reshape(B, 3, H // 4, 4, W // 4, 4).permute(0, 3, 5, 1, 2, 4)
        x = x.reshape(B, 48, H // 4, W // 4).to(self.conv1.conv.weight.dtype)
        if images.is_contiguous(memory_format=torch.channels_last):
            x = x.contiguous(memory_format=torch.channels_last)
        return self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return pooled(self.forward_features(images), self.pool)  # (B, D), F_GAP

    def fold(self) -> "TResNet":
        """The deploy form, a copy in eval mode: the same features in fewer operations.

        Every norm is merged into the convolution before it; weights are stored in channels_last.
        """
        folded = copy.deepcopy(self).eval()
        for module in folded.modules():
            if isinstance(module, ConvABN):
                module.conv = fuse_conv_bn_eval(module.conv, module.bn)
                slope = module.bn.slope
                module.bn = nn.Identity() if slope == 1 else nn.LeakyReLU(slope, inplace=True)
        return folded.to(memory_format=torch.channels_last)

    @staticmethod
    def own_entry(name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
        """An entry of a released file under the name and with the values that this network uses;
        other entries as they are.

        Released files have the names of in-place ABN, which uses a norm weight w as |w| + 1e-5.
        """
        name = name.removeprefix("body.")
        if not (match := INPLACE_ABN.fullmatch(name)):
            return name, tensor
        conv, part, entry = match.groups()
        if part == "1" and entry == "weight" and tensor.is_floating_point():
            tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32)).abs() + 1e-5
        return f"{conv}.{'bn' if part == '1' else 'conv'}.{entry}", tensor


# Names of in-place ABN for the parts of ConvABN: <conv>.0 and <conv>.1, once deeper where a blur
# follows.
INPLACE_ABN = re.compile(r"(.*(?:conv[123]|downsample\.1))\.(?:0\.(?=[01]\.))?([01])\.(\w+)")


def tresnet_m(pool: str = "avg") -> TResNet:
    """D = 2048; 29,340,032 parameters."""
    return TResNet((3, 4, 11, 3), pool=pool)


def tresnet_l(pool: str = "avg") -> TResNet:
    """D = 2432; 53,556,256 parameters."""
    return TResNet((4, 5, 18, 3), width=1.2, pool=pool)


def tresnet_xl(pool: str = "avg") -> TResNet:
    """D = 2656; 75,779,244 parameters."""
    return TResNet((4, 5, 24, 3), width=1.3, pool=pool)


def tresnet_tiny(pool: str = "avg") -> TResNet:
    """D = 512. Ours, for the demo and the tests: the same parts with fewer, narrower blocks."""
    return TResNet((1, 1, 2, 1), width=0.25, pool=pool)
