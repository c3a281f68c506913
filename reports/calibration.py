"""Scores that mean something: two numbers that make them probabilities.

A model trained with the asymmetric loss scores high by construction. sigmoid(slope * logit +
offset) estimates the probability that the label is right. Both numbers are the same for all
labels and are fitted by maximum likelihood (Platt, 1999). Ranks, and with them AP, stay the same.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

LARGEST_SLOPE = 1e9  # and offset; a file with more is damaged


def fit(logits: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Slope and offset of the highest likelihood of targets (M, n) given logits (M, n).

    It is (1, 0), which changes nothing, where higher logits are not more often right, and where all
    logits are almost equal, so that a number would be above LARGEST_SLOPE.
    """
    x, y = torch.from_numpy(logits).double(), torch.from_numpy(targets).double()  # (M, n)
    centre, spread = x.mean(), x.std(correction=0).clamp(min=1e-12)
    x = (x - centre) / spread  # so that the search starts near its end, whatever the logits' scale
    line = torch.tensor([1.0, 0.0], dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([line], max_iter=100, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = F.binary_cross_entropy_with_logits(line[0] * x + line[1], y)
        value.backward()
        return value

    optimizer.step(loss)
    slope, offset = (line[0] / spread).item(), (line[1] - line[0] * centre / spread).item()
    usable = 0 < slope <= LARGEST_SLOPE and abs(offset) <= LARGEST_SLOPE  # NaN is not
    return (slope, offset) if usable else (1.0, 0.0)


def scores(logits: np.ndarray, slope: float, offset: float) -> np.ndarray:
    """Calibrated probabilities (M, n) of logits (M, n)."""
    return (slope * torch.from_numpy(logits).double() + offset).sigmoid().numpy()


class Calibrated(nn.Module):
    """A head, a GCN's as the linear layer it amounts to, with logits slope * logit + offset."""

    def __init__(self, head: nn.Module, slope: float, offset: float):
        super().__init__()
        self.head = head.to_linear() if hasattr(head, "to_linear") else head
        self.slope, self.offset = slope, offset

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.slope * self.head(features) + self.offset  # (..., n)
