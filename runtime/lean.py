"""Layers that keep less for backward and compute the same numbers.

Each gives the gradients of the plain layer it stands for, up to rounding, and keeps about half of
the memory. Nothing here comes from the paper, and nothing here knows a network: when you
read a network, read each call as the plain formula beside it.
"""

import contextlib

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

on = True  # False is run.py's --memory plain


def wanted(module: nn.Module) -> bool:
    """Whether to keep less for backward; torch.compile plans that by itself."""
    training = module.training and torch.is_grad_enabled()
    return on and training and not torch.compiler.is_compiling()


def norm_leaky_relu(norm: nn.BatchNorm2d, x: torch.Tensor, slope: float) -> torch.Tensor:
    """leaky_relu(norm(x), slope); only the output is kept for backward."""
    norm.num_batches_tracked.add_(1)
    parts = norm.weight, norm.bias, norm.running_mean, norm.running_var
    return InPlaceABN.apply(x, *parts, norm.momentum, norm.eps, slope)


class InPlaceABN(torch.autograd.Function):
    """Batch norm, then leaky ReLU, of x (B, C, H, W) in training; only the output is kept.

    Backward inverts leaky ReLU and batch norm (Rota Bulo et al., "In-Place Activated BatchNorm for
    Memory-Optimized Training of DNNs", CVPR 2018). Batch norm's inverse is a batch norm too, with
    other constants, so both directions run on torch's own kernels.

    The rounding error of x, normalised, grows with |bias / weight|. A weight that is too small
    beside the rounding of its output is raised to eps |bias|, so that the error is at most 1/2, and
    to at least 1e-5, which is in-place ABN's own floor. No released weight is below that.
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


def reflected(x: torch.Tensor) -> torch.Tensor:
    """x (B, C, H, W) -> (B, C, H + 2, W + 2), reflected at the borders.

    On CUDA, torch's own reflection loses the channels_last order, and its backward adds in no fixed
    order. So there it is made of slices.
    """
    if x.is_cuda and not torch.compiler.is_compiling():
        return reflected_by_slices(x)
    return F.pad(x, (1, 1, 1, 1), mode="reflect")


def reflected_by_slices(x: torch.Tensor) -> torch.Tensor:
    x = torch.cat((x[:, :, 1:2], x, x[:, :, -2:-1]), 2)
    return torch.cat((x[..., 1:2], x, x[..., -2:-1]), 3)


def gradient_by_slices(grad: torch.Tensor) -> torch.Tensor:
    """The gradient of x from that of reflected_by_slices(x), which is overwritten."""
    for row, source in ((0, 2), (-1, -3)):
        grad[:, :, source] += grad[:, :, row]
    for column, source in ((0, 2), (-1, -3)):
        grad[..., source] += grad[..., column]
    return grad[:, :, 1:-1, 1:-1].clone(memory_format=torch.preserve_format)


def recompute(block: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    """block.end(*inputs). If the block says `recomputes`, only the inputs are kept, and backward
    computes the rest again: the block's widest maps, which are cheap to make.

    `block.norms_of_end()` are the norms in `end`, which then see the batch a second time.
    """
    if not (block.recomputes and wanted(block)):
        return block.end(*inputs)
    return checkpoint(
        block.end,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (contextlib.nullcontext(), already_counted(block.norms_of_end())),
    )


@contextlib.contextmanager
def already_counted(norms: list[nn.BatchNorm2d]):
    """Inside, these norms see a batch that their running statistics hold already.

    A momentum of 0 leaves the statistics as they are.
    """
    norms = [norm for norm in norms if norm.training]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked -= 1
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


class Blur(torch.autograd.Function):
    """A filter (C, 1, 3, 3) on every channel, reflected borders, stride 2. It is not trained, so
    backward needs only the shape of x."""

    @staticmethod
    def forward(ctx, x, kernel):
        ctx.save_for_backward(kernel)
        ctx.shape = x.shape
        return F.conv2d(reflected(x), kernel, stride=2, groups=x.shape[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (kernel,) = ctx.saved_tensors
        B, C, H, W = ctx.shape
        padded = B, C, H + 2, W + 2
        grad = torch.nn.grad.conv2d_input(padded, kernel, grad, stride=2, groups=C)
        if grad.is_cuda:
            return gradient_by_slices(grad), None
        x = grad.new_empty(1).expand(ctx.shape)  # for its shape; takes no memory
        return torch.ops.aten.reflection_pad2d_backward(grad, x, [1, 1, 1, 1]), None
