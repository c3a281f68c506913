"""IML-GCN: an image backbone whose n linear classifiers are produced by a GCN over the n labels.

Paper: I. P. Singh, O. Oyedotun, E. Ghorbel, D. Aouada, "IML-GCN: Improved Multi-Label Graph
Convolutional Network for Efficient yet Precise Image Classification", 2022.
Equation, table and section numbers below are the paper's; "difference k" is entry k of
docs/differences.md.

Symbols: B images in a batch, M images in a split, n labels, D image feature size (2048 for
TResNet-M), d node feature size.

    loss         Implementation details     asymmetric_loss
    P, A         Eq. 3 and 4                cooccurrence, adjacency
    A_hat        Eq. 2                      normalise
    F_I          Eq. 5                      LabelMeans
    F_PCA        Eq. 6                      pca
    the GCN      Eq. 1 and 2, Figure 2      LabelGCN
    the model    Figure 2                   Model

Read `Model.forward` and `LabelGCN.classifiers` first, then from the top.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn


def asymmetric_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    gamma_neg: float = 4,
    gamma_pos: float = 0,
    clip: float = 0.05,
) -> torch.Tensor:
    """Asymmetric loss (ASL; Ridnik et al. 2021a, there Eq. 4-7), *summed* over images and labels.

    With p = sigmoid(logit) and p_m = max(p - clip, 0), a positive costs (1 - p)^gamma_pos * -log(p)
    and a negative p_m^gamma_neg * -log(1 - p_m). The focusing powers weigh the terms and carry no
    gradient (ASL's training script, difference 11). Being a sum, the loss grows with the batch.

    logits (B, n) of any float type, targets (B, n) 0/1. Computed in float32 from log-sigmoids, so
    it and its gradient are finite for every finite logit. All three at 0: binary cross-entropy.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # (B, n)
    targets = targets.to(logits.dtype)  # (B, n)
    log_p = F.logsigmoid(logits)  # (B, n)
    # 1 - p_m = min(1 - p + clip, 1), summed in log space: 1 - p underflows, log(1 - p) does not.
    log_clip = logits.new_full((), math.log(clip) if clip else -math.inf)  # -inf changes nothing
    log_1_minus_p_m = torch.logaddexp(F.logsigmoid(-logits), log_clip).clamp(max=0)  # (B, n)
    p = logits.sigmoid().detach()  # (B, n), for the weights only
    weight_pos = (1 - p) ** gamma_pos
    weight_neg = (p - clip).clamp(min=0) ** gamma_neg
    losses = targets * weight_pos * log_p + (1 - targets) * weight_neg * log_1_minus_p_m  # (B, n)
    return -losses.sum()


def cooccurrence(targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Count labels and pairs of labels in targets (M, n) of 0/1, the training split's.

    Returns pairs (n, n) and counts (n,): pairs[i, j] is the number of images that show both i and
    j, with a zero diagonal, and counts[i] the number that show i. Both are float64, exact up to
    2^53.
    """
    n = targets.shape[1]
    pairs = torch.zeros(n, n, dtype=torch.float64)
    for block in torch.as_tensor(targets).split(8192):  # bounds the memory of the float copy
        block = block.double()
        pairs += block.T @ block  # (n, n)
    counts = pairs.diagonal().clone()  # (n,)
    return pairs.fill_diagonal_(0), counts


def adjacency(
    pairs: torch.Tensor,
    counts: torch.Tensor,
    tau: float = 0.1,
    p: float = 0.2,
    reading: str = "paper",
) -> torch.Tensor:
    """The label graph A (n, n) of Eq. 3 and 4 from `cooccurrence`'s counts.

    P[i, j] = P(label j | label i): the row is the condition. The diagonal of P is not an edge, and
    a label that never occurs has no edges. `reading` (differences 1 to 3):
      "paper": row i gives p in equal parts to the j with P[i, j] >= tau, and 1 - p to itself;
      "mlgcn": ML-GCN's released code, a column's edges share 0.25 beside an identity; no p;
      "none": the identity, each label by itself; it shows what the graph contributes [ours].
    """
    P = pairs.double() / counts.double().clamp(min=1)[:, None]  # (n, n), zero rows stay zero
    A = ((P >= tau) & (P > 0)).double().fill_diagonal_(0)  # (n, n), Eq. 3
    I = torch.eye(len(A), dtype=A.dtype)  # noqa: E741
    if reading == "paper":
        neighbours = A.sum(1, keepdim=True).clamp(min=1)  # (n, 1); an isolated label keeps 1 - p
        A = p * A / neighbours + (1 - p) * I  # Eq. 4, over edges only; differences 1 and 2
    elif reading == "mlgcn":
        A = 0.25 * A / (A.sum(0, keepdim=True) + 1e-6) + I  # difference 3
    elif reading == "none":
        A = I
    else:
        raise ValueError(f"adjacency reading is {reading!r}, expected 'paper', 'mlgcn' or 'none'")
    return A.float()


def normalise(A: torch.Tensor, reading: str = "paper") -> torch.Tensor:
    """A_hat (n, n) of Eq. 2: D^-1/2 A D^-1/2 with D the row sums of A (difference 4).

    "mlgcn" transposes A as ML-GCN's released code does: there row i of A_hat gathers from the
    labels j with P(i | j) >= tau, while the paper's gathers from those with P(j | i) >= tau.
    """
    degree = A.sum(1)  # (n,)
    scale = torch.where(degree > 0, degree, 1).rsqrt()  # (n,), an empty row stays empty
    if reading == "mlgcn":
        A = A.T  # difference 3
    return scale[:, None] * A * scale  # (n, n)


class LabelMeans:
    """F_I (n, D), Eq. 5: per label, the mean GAP feature of the training images that show it.

    It takes batch after batch and needs O(n D) memory for any M. Sums are float64 on the CPU, so
    the order of the images and the size of the batches do not change the float32 results.
    """

    def __init__(self, num_labels: int, num_features: int):
        self.sums = torch.zeros(num_labels, num_features, dtype=torch.float64)  # (n, D)
        self.counts = torch.zeros(num_labels, dtype=torch.float64)  # (n,)

    def update(self, features: torch.Tensor, targets: torch.Tensor) -> None:
        """Add a batch: features (B, D), targets (B, n) of 0/1."""
        targets = targets.cpu().double()
        self.sums += targets.T @ features.detach().cpu().double()  # (n, D)
        self.counts += targets.sum(0)  # (n,)

    def mean(self) -> torch.Tensor:
        """F_I (n, D) in float32. A label that never occurred gets zeros."""
        return (self.sums / self.counts.clamp(min=1)[:, None]).float()  # Eq. 5


def pca(features: torch.Tensor, k: int) -> torch.Tensor:
    """F_PCA (n, k), Eq. 6: the rows of features (n, D) in their first k principal components.

    The n rows are centred, so the rank is at most n - 1 and with k = n, the paper's choice, the
    last component is zero (difference 15). PCA leaves the sign of a component open; here the entry
    of largest magnitude in its direction is positive, so that two machines agree. k <= min(n, D).
    Rows of zeros belong to labels that no image shows: they are ignored and stay zero (difference
    26).
    """
    n, D = features.shape
    if not 1 <= k <= min(n, D):
        raise ValueError(f"pca: an ({n}, {D}) matrix has at most {min(n, D)} components, not {k}")
    shown = features.any(1)  # (n,)
    centred = features.double() - features[shown].double().mean(0)  # (n, D)
    centred[~shown] = 0
    U, S, Vh = torch.linalg.svd(centred, full_matrices=False)  # (n, r), (r,), (r, D); r = min(n, D)
    S = S * (S > S[0] * max(n, D) * torch.finfo(S.dtype).eps)  # rounding noise is no component
    signs = Vh.gather(1, Vh.abs().argmax(1, keepdim=True)).sign().squeeze(1)  # (r,)
    F_PCA = (U * (S * signs))[:, :k]  # (n, k), equal to centred @ Vh[:k].T up to sign
    return torch.where(shown[:, None], F_PCA, 0).float()


class LabelGCN(nn.Module):
    """A two-layer GCN whose output rows are the n linear classifiers (Eq. 2 and Figure 2).

    d -> hidden -> D, LeakyReLU(0.2) between and none after, no biases, weights drawn from
    U(-1/sqrt(out), 1/sqrt(out)), as in ML-GCN's released code: "The overall architecture remains".
    nodes (n, d) and A_hat (n, n) are constants; as buffers they travel with checkpoint and device.
    """

    def __init__(
        self, nodes: torch.Tensor, A_hat: torch.Tensor, num_features: int, hidden: int = 1024
    ):
        super().__init__()
        n, d = nodes.shape
        if A_hat.shape != (n, n):
            raise ValueError(f"A_hat is {tuple(A_hat.shape)}, the {n} nodes need ({n}, {n})")
        self.register_buffer("nodes", nodes.float().clone())  # (n, d)
        self.register_buffer("A_hat", A_hat.float().clone())  # (n, n)
        self.W0 = nn.Parameter(torch.empty(d, hidden))
        self.W1 = nn.Parameter(torch.empty(hidden, num_features))
        for W in (self.W0, self.W1):
            nn.init.uniform_(W, -1 / math.sqrt(W.shape[1]), 1 / math.sqrt(W.shape[1]))

    def classifiers(self) -> torch.Tensor:
        """(n, D), Eq. 1: one linear classifier per label, the same for every image."""
        H = F.leaky_relu(self.A_hat @ (self.nodes @ self.W0), 0.2)  # (n, hidden), Eq. 2
        return self.A_hat @ (H @ self.W1)  # (n, D), Eq. 2 with h the identity

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features @ self.classifiers().T  # (B, n) logits, Figure 2

    @torch.no_grad()
    def to_linear(self) -> nn.Linear:
        """The trained GCN as the linear layer it computes: deploy this, without the graph."""
        weight = self.classifiers()  # (n, D)
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device)
        linear.weight.copy_(weight)
        return linear


def linear_head(num_features: int, num_labels: int) -> nn.Linear:
    """The head of the direct model, the "ASL (TResNetM)" row; weights N(0, 0.01) as TResNet's."""
    head = nn.Linear(num_features, num_labels)
    nn.init.normal_(head.weight, std=0.01)
    return head


class Model(nn.Module):
    """Every row of the paper's tables: logits = head(backbone(images)).

    backbone: images (B, 3, H, W) in [0, 1] -> F_GAP (B, D); head: F_GAP -> logits (B, n).
    The head runs in float32 under autocast too: bfloat16 logits tie, and ties cost precision in AP.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.backbone(images)  # (B, D), F_GAP
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        with torch.autocast(features.device.type, enabled=False):
            return self.head(features)  # (B, n)

    @torch.no_grad()
    def fold(self) -> "Model":
        """The deploy form, a copy in eval mode: the same logits from fewer operations.

        A GCN head becomes the linear layer it computes, and norms are merged into the convolutions
        where the backbone has `fold()`.
        """
        backbone, head = self.backbone, self.head
        backbone = backbone.fold() if hasattr(backbone, "fold") else copy.deepcopy(backbone)
        head = head.to_linear() if hasattr(head, "to_linear") else copy.deepcopy(head)
        return Model(backbone, head).eval()


def count_parameters(model: nn.Module) -> int:
    """As the paper counts: trained weights and the n x n adjacency (difference 16)."""
    graph = getattr(model.head, "A_hat", torch.empty(0))  # (n, n)
    return sum(p.numel() for p in model.parameters()) + graph.numel()
