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

import contextlib
import copy
import http.client
import itertools
import os
import re
import urllib.error
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.checkpoint import checkpoint


class ABN(nn.BatchNorm2d):
    """Activated batch norm: batch norm, then leaky ReLU; slope 1 is the identity.

    Its weights and state are those of nn.BatchNorm2d. Slope 1, the end of a block, stays plain: its
    weights start at 0, which cannot be inverted.
    """

    def __init__(self, channels: int, slope: float):
        super().__init__(channels)
        self.slope = slope

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.slope == 1:
            return super().forward(x)
        if lean(self):
            self.num_batches_tracked.add_(1)
            parts = self.weight, self.bias, self.running_mean, self.running_var
            return InPlaceABN.apply(x, *parts, self.momentum, self.eps, self.slope)
        return F.leaky_relu(super().forward(x), self.slope)


class InPlaceABN(torch.autograd.Function):
    """Training's ABN of x (B, C, H, W): keeps its output for backward, not x nor what lies between.

    Backward inverts leaky ReLU and batch norm (Rota Bulo et al., "In-Place Activated BatchNorm for
    Memory-Optimized Training of DNNs", CVPR 2018). Batch norm's inverse is a batch norm too, with
    other constants, so both directions run on torch's own kernels.

    What rounding does to x, normalised, grows with |bias / weight|. A weight too small to be told
    from the rounding of its output is raised to eps |bias|, then the error is at most 1/2; and to
    1e-5 at least, in-place ABN's own floor. No weight of the released files is below that.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, mean, var, momentum, eps, slope):
        least = torch.finfo(x.dtype).eps * bias.abs() + 1e-5  # (C,)
        weight = weight.abs().maximum(least).copysign(weight)  # (C,)
        y, _, inv_std = torch.native_batch_norm(x, weight, bias, mean, var, True, momentum, eps)
        y = F.leaky_relu_(y, slope)  # (B, C, H, W)
        ctx.save_for_backward(y, weight, bias, inv_std)
        ctx.slope = slope
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        y, weight, bias, inv_std = ctx.saved_tensors
        grad = torch.ops.aten.leaky_relu_backward(grad, y, ctx.slope, True)
        y = F.leaky_relu(y, 1 / ctx.slope)  # batch norm's output
        # Its backward with "mean" bias and "inverse deviation" 1 / weight normalises y back to
        # (y - bias) / weight; its factor, "weight" times "inverse deviation", comes out right.
        grads = torch.ops.aten.native_batch_norm_backward(
            grad, y, weight**2 * inv_std, None, None, bias, 1 / weight, True, 0.0, [True] * 3
        )  # (B, C, H, W), (C,), (C,)
        return *grads, None, None, None, None, None


def lean(module: nn.Module) -> bool:
    """Whether to spend on keeping less for backward; torch.compile plans that by itself."""
    return module.training and torch.is_grad_enabled() and not torch.compiler.is_compiling()


def recompute(block: nn.Module, end: Callable, *inputs: torch.Tensor) -> torch.Tensor:
    """end(*inputs), the end of a block, of which backward keeps the inputs and computes the rest
    again: 1x1 convolutions, norms and SE, the widest maps of a block and cheap to make. In the last
    stage, without SE, they are half as wide at the same arithmetic, and are kept."""
    if not lean(block) or isinstance(block.se, nn.Identity):
        return end(*inputs)
    return checkpoint(
        end,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (contextlib.nullcontext(), counted(block)),
    )


@contextlib.contextmanager
def counted(block: nn.Module):
    """Inside, norms at the end of a block see a batch that their running statistics hold already.

    A momentum of 0 leaves those as they are.
    """
    norms = [m for m in block.modules() if isinstance(m, ABN) and m.slope == 1 and m.training]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked -= 1
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


class ConvABN(nn.Sequential):
    """Convolution and ABN; stride 2 is done after both, by the blur, against aliasing."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, slope: float = 1e-3):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False)
        self.bn = ABN(c_out, slope)
        if stride == 2:
            self.blur = Blur()


class Blur(nn.Module):
    """[1 2 1]^2 / 16 on every channel, reflected borders, stride 2: (H, W) -> (H / 2, W / 2) up."""

    def __init__(self):
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", row[:, None] * row, persistent=False)  # no weight: not saved

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel = self.kernel.to(x.dtype).expand(x.shape[1], 1, 3, 3)
        return LeanBlur.apply(x, kernel) if lean(self) else blur(x, kernel)


def blur(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel, stride=2, groups=x.shape[1])


class LeanBlur(torch.autograd.Function):
    """`blur` by a filter that is not trained: backward needs no more of x than its shape."""

    @staticmethod
    def forward(ctx, x, kernel):
        ctx.save_for_backward(kernel)
        ctx.shape = x.shape
        return blur(x, kernel)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (kernel,) = ctx.saved_tensors
        B, C, H, W = ctx.shape
        padded = B, C, H + 2, W + 2
        grad = torch.nn.grad.conv2d_input(padded, kernel, grad, stride=2, groups=C)
        x = grad.new_empty(1).expand(ctx.shape)  # for its shape; takes no memory
        return torch.ops.aten.reflection_pad2d_backward(grad, x, [1, 1, 1, 1]), None


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
    """The residual path: the identity; where the shape changes, pooling and a 1x1 convolution."""
    if stride == 1 and c_in == c_out:
        return nn.Identity()
    pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
    return nn.Sequential(pool, ConvABN(c_in, c_out, 1, slope=1))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; SE gates their output, before the addition."""

    expansion = 1

    def __init__(self, c_in: int, planes: int, stride: int, se: bool):
        super().__init__()
        self.conv1 = ConvABN(c_in, planes, 3, stride)
        self.conv2 = ConvABN(planes, planes, 3, slope=1)
        self.se = SE(planes, max(planes // 4, 64)) if se else nn.Identity()
        self.downsample = shortcut(c_in, planes, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu_(recompute(self, self.end, self.conv2.conv(self.conv1(x)), x))

    def end(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.se(self.conv2.bn(z)).add_(self.downsample(x))


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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu_(recompute(self, self.end, self.conv2(self.conv1(x)), x))

    def end(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.conv3(self.se(y)).add_(self.downsample(x))


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
        """The released code's: He normal on fan-out, and every block starts as its shortcut."""
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
        x = self.forward_features(images)  # (B, D, h, w)
        # F_GAP (B, D) leaves in float32 even under autocast: the head ranks what is left of it.
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return x.amax((2, 3)) if self.pool == "max" else x.mean((2, 3))


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
    """D = 512. Ours, for the demo and the tests: the same parts, a fraction of blocks and width."""
    return TResNet((1, 1, 2, 1), width=0.25, pool=pool)


# The authors' released files, by the names --weights takes.
ZOO = "https://miil-public-eu.oss-eu-central-1.aliyuncs.com/model-zoo/"
RELEASED = {
    "tresnet_m_21k": ZOO + "ImageNet_21K_P/models/tresnet_m_miil_21k.pth",
    "tresnet_m_1k": ZOO + "tresnet/tresnet_m.pth",
    "tresnet_m_1k_448": ZOO + "tresnet/tresnet_m_448.pth",
    "tresnet_l_1k": ZOO + "tresnet/tresnet_l.pth",
    "tresnet_m_coco_224": ZOO + "ASL/MS_COCO_TRresNet_M_224_81.8.pth",  # ASL's, 80 COCO labels
}


def read_checkpoint(path: str | Path) -> dict:
    """torch.load of tensors and plain types only: a hostile pickle cannot run, it is an error.

    So is a file that unpacks to more than it holds, or a tensor that claims more than its storage.
    A URL is downloaded once, into torch.hub's folder.
    """
    url = str(path) if str(path).startswith(("http://", "https://")) else None
    if not url and not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; give the path of an existing file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, on what a damaged file happens to ask for
            if url:
                checkpoint = torch.hub.load_state_dict_from_url(
                    url, map_location="cpu", check_hash=True, weights_only=True
                )
            else:
                check_size(path)
                checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            check_tensors(checkpoint)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError) as error:
        folder = Path(torch.hub.get_dir(), "checkpoints")
        raise FileNotFoundError(
            f"cannot download {url} ({error}); fetch it on another machine and put it into {folder}"
        ) from error
    except Exception as error:
        kind = type(error).__name__  # not its text: torch's advises to let the file run code
        raise ValueError(
            f"{path} is not a checkpoint of plain tensors ({kind}); give the file as torch.save "
            "wrote it, or fetch it again"
        ) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(
            f"{path} holds a {type(checkpoint).__name__}, expected a dict of weights; give a file "
            "of weights"
        )
    return checkpoint


def check_size(path: str | Path) -> None:
    """torch.save compresses nothing: what unpacks to more than the file's size is none of its."""
    with open(path, "rb") as file:
        if file.read(4) == b"PK\3\4":  # else it is of torch before 1.6, no archive
            size = file.seek(0, os.SEEK_END)
            if sum(member.file_size for member in zipfile.ZipFile(file).infolist()) > size:
                raise ValueError("it unpacks to more than it holds")


def check_tensors(checkpoint: object) -> None:
    """Every tensor in these dicts and lists is plain and in memory, none of it more than once."""
    left, seen = [checkpoint], set()
    while left:
        value = left.pop()
        if id(value) in seen:  # lists may hold themselves
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, (list, tuple)):
            left += value
        elif isinstance(value, torch.Tensor):
            plain = value.layout == torch.strided and not value.is_quantized and not value.is_nested
            if not plain or value.is_meta or value.nbytes > value.untyped_storage().nbytes():
                raise ValueError("a tensor claims more than there is")


# In-place ABN's names of ConvABN's parts: <conv>.0 and <conv>.1, once deeper where a blur follows.
INPLACE_ABN = re.compile(r"(.*(?:conv[123]|downsample\.1))\.(?:0\.(?=[01]\.))?([01])\.(\w+)")


def load_weights(backbone: nn.Module, path: str | Path) -> dict[str, torch.Tensor]:
    """Load a backbone strictly: our checkpoints, released TResNet files, timm's, torchvision's.

    `path` is a file or a URL. Only a classifier (`head.*`, torchvision's `fc.*`) may be left over;
    it is returned, as "weight" and "bias" where it is a linear layer. Batch counters and blur
    kernels are ignored. Anything else missing, unexpected or of another shape is a ValueError that
    names it: a wrong file must not turn into random weights without a word.
    """
    checkpoint = read_checkpoint(path)
    state = next(
        (checkpoint[k] for k in ("model", "state_dict") if isinstance(checkpoint.get(k), dict)),
        checkpoint,
    )
    weights, head, inplace, problems = {}, {}, [], []
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise ValueError(
                f"{path}: entry {key!r:.80} is a {type(value).__name__}, expected named tensors; "
                "give a file of weights"
            )
        name = re.sub(r"^(module\.|backbone\.|body\.)*", "", key)
        if name.startswith(("head.", "fc.")):
            head[re.sub(r"^(head\.)?(fc\.)?", "", name)] = value
        elif not name.endswith((".filt", ".num_batches_tracked")):
            if match := INPLACE_ABN.fullmatch(name):
                conv, part, tensor = match.groups()
                name = f"{conv}.{('conv', 'bn')[int(part)]}.{tensor}"
                if part == "1" and tensor == "weight":
                    inplace.append(name)
            if name in weights:
                problems.append(f"two entries for {name!r:.80}")
            weights[name] = value
    expected = {k: v for k, v in backbone.state_dict().items() if "num_batches" not in k}
    problems += [f"missing {k}" for k in expected if k not in weights]
    problems += [f"unexpected {k!r:.80}" for k in weights if k not in expected]
    problems += [
        f"{k} is {v.dtype} {tuple(v.shape)!s:.80}, expected floats {tuple(expected[k].shape)}"
        for k, v in weights.items()
        if k in expected and not (v.shape == expected[k].shape and v.is_floating_point())
    ]
    if problems:
        raise ValueError(
            f"{path} does not fit this backbone, {len(problems)} problems: "
            f"{', '.join(problems[:3])}{' ...' if len(problems) > 3 else ''}; "
            "choose the --backbone the file was made for"
        )
    for name in inplace:  # what in-place ABN computes with; never negative
        weights[name] = weights[name].to(expected[name].dtype).abs() + 1e-5
    backbone.load_state_dict(weights, strict=False)  # strict above: only batch counters are left
    print(f"{path}: loaded {len(weights)} of {len(expected)} backbone tensors")
    return head


def fold(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The deploy form, a copy in eval mode: same logits, fewer operations and parameters.

    Every batch norm goes into the convolution before it (TResNet's, ResNet's), a GCN head becomes
    the linear layer it amounts to, weights lie in channels_last. The backbone computes in `dtype`,
    pooling and head stay in float32.
    """
    model = copy.deepcopy(model).eval()
    if hasattr(getattr(model, "head", None), "to_linear"):
        model.head = model.head.to_linear()
    for parent in model.modules():
        for (name, conv), (after, norm) in itertools.pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(conv, norm))
                slope = getattr(norm, "slope", 1)
                act = nn.Identity() if slope == 1 else nn.LeakyReLU(slope, inplace=True)
                setattr(parent, after, act)
    getattr(model, "backbone", model).to(dtype, memory_format=torch.channels_last)
    return model
