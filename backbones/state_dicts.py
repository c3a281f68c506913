"""Where in a checkpoint the weights of a backbone are: other programs put theirs in many places.

They nest them under keys (`state_dict`, `model_ema`, `ema.module`) and put the names of wrappers in
front of the tensors' own (`module.`, `model.`, `backbone.`). So no list of keys is kept here: a
network is where the backbone's names are, whatever stands in front of all of them.
No file is opened here.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from runtime.terminal import listed, printable

DEPTH, LONGEST, DOTS = 4, 300, 8  # most nested keys, letters of a name, dots in front of a name
# What torch.compile, FSDP and activation checkpointing put into names, at any place.
WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
COUNTERS = ".filt", ".num_batches_tracked"  # not loaded: fixed blur kernels, torch's own counters
AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged?|avg)([._]|$)")  # in the place of a network
CLASSIFIER = "head.", "fc.", "_fc."


@dataclass
class Network:
    """One place in a checkpoint, and what is there under a backbone's own names."""

    place: str  # what stands in front of the names, nested keys and prefixes: "ema.module."
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    head: dict[str, torch.Tensor] = field(default_factory=dict)  # the classifier
    matches: int = 0  # of the backbone's tensors
    whole: bool = False  # all of them, in their shapes
    others: int = 0  # tensors beside it that belong to something else

    @property
    def averaged(self) -> bool:
        return bool(AVERAGED.search(self.place))


def find(checkpoint: dict, backbone: nn.Module, path: object) -> tuple[Network, list[str]]:
    """The network to load, and the places of others that were left out.

    Of raw and averaged weights the averaged ones are loaded, as in timm. Several networks of which
    none is to be preferred are a ValueError. If none fits, the one that comes nearest is returned.
    """
    for keys, tensors in groups(checkpoint):
        for name, tensor in tensors.items():
            if tensor.layout != torch.strided or tensor.is_meta or tensor.is_nested:
                raise ValueError(
                    f"{path}: {printable(keys + name)} is sparse, nested or without values; save "
                    "dense tensors"
                )
    candidates = networks(checkpoint, backbone)
    whole = [network for network in candidates if network.whole] or candidates[:1]
    averaged = [network for network in whole if network.averaged]
    choice = averaged if len(averaged) == 1 else whole
    if len(choice) > 1 and not all(equal_weights(choice[0], other) for other in choice[1:]):
        places = listed([named(network) for network in choice])
        raise ValueError(
            f"{path} holds this network {len(choice)} times, with different weights{places}; save "
            "the tensors of the one you mean in a file of their own"
        )
    best, left_out = choice[0], []
    for other in candidates:
        if other is not best and other.matches > best.matches / 2:
            left_out.append(named(other))
    return best, left_out


def networks(checkpoint: dict, backbone: nn.Module) -> list[Network]:
    """The networks in a checkpoint that may be this backbone, best match first; at least one."""
    own_entry = getattr(backbone, "own_entry", lambda *entry: entry)
    classifier = getattr(backbone, "classifier", CLASSIFIER)
    shapes = {name: tensor.shape for name, tensor in backbone.state_dict().items()}
    shapes = {name: shape for name, shape in shapes.items() if not name.endswith(COUNTERS)}
    candidates = []
    for keys, tensors in groups(checkpoint):
        matches = defaultdict(set)  # prefix -> the backbone's names that follow it
        for name in tensors:
            parts = name.split(".", DOTS) if len(name) <= LONGEST else []
            for i in range(len(parts)):  # first the whole name, then less and less of its end
                own, _ = own_entry(".".join(parts[i:]), tensors[name])
                if own in shapes:
                    matches["".join(f"{part}." for part in parts[:i])].add(own)
                    break
        for prefix in matches or [""]:
            network = Network(keys + prefix, matches=len(matches[prefix]))
            sort_tensors(tensors, prefix, classifier, own_entry, network)
            network.whole = {n: t.shape for n, t in network.weights.items()} == shapes
            candidates.append(network)
    candidates.sort(key=lambda n: (n.whole, n.matches, len(n.weights)), reverse=True)
    return candidates or [Network("")]


def groups(checkpoint: dict) -> Iterator[tuple[str, dict]]:
    """Every dict in a checkpoint that holds tensors: the keys to it, and the tensors by name."""
    dicts, seen = [("", checkpoint, 0)], set()
    for keys, tree, depth in dicts:  # grows while it is read
        if id(tree) in seen or depth > DEPTH:  # a file can nest a dict in itself
            continue
        seen.add(id(tree))
        tensors = {
            WRAPPERS.sub("", str(key)): value
            for key, value in tree.items()
            if isinstance(value, torch.Tensor)
        }
        if tensors:
            yield keys, tensors
        for key, value in tree.items():
            if isinstance(value, dict):
                dicts.append((f"{keys}{str(key)[:LONGEST]}.", value, depth + 1))


def sort_tensors(
    tensors: dict, prefix: str, classifier: tuple, own_entry: Callable, network: Network
) -> None:
    """Put each tensor of a group into `network.weights` or `network.head`, or count it in
    `network.others`. `own_entry` is a backbone's, as in backbones/__init__.py.

    The classifier's names follow the prefix, or stand beside it, as in our own checkpoints.
    """
    outside = re.sub(r"[^.]+\.$", "", prefix)  # "" of "backbone."
    beside = {}
    for key, value in tensors.items():
        name = key.removeprefix(prefix)
        if key.startswith(prefix) and name.startswith(classifier):
            network.head[own_name(name)] = value
        elif key.startswith(prefix):
            if not name.endswith(COUNTERS):
                name, value = own_entry(name, value)
                network.weights[name] = value
        elif key.startswith(tuple(outside + start for start in CLASSIFIER)):
            beside[own_name(key.removeprefix(outside))] = value
        else:
            network.others += 1
    network.head = network.head or beside


def own_name(name: str) -> str:
    """A tensor's name within its classifier, whatever that is called: "weight" or "bias" if it is
    linear."""
    return re.sub(r"^(head\.)?(_?fc\.|classifier\.)?", "", name)


def equal_weights(one: Network, other: Network) -> bool:
    """Whether two networks have the same numbers: some files hold one under two keys."""
    return all(tensor.equal(other.weights[name]) for name, tensor in one.weights.items())


def misfit(weights: dict[str, torch.Tensor], backbone: nn.Module) -> str:
    """How weights differ from those of a backbone: the tensors that are missing, of another shape
    or not the backbone's, with the first of each kind; "" if they are the same."""
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in backbone.state_dict().items()
        if not name.endswith(COUNTERS)
    }
    missing = [name for name in shapes if name not in weights]
    others = [name for name in weights if name not in shapes]
    reshaped = []
    for name, shape in shapes.items():
        if name in weights and weights[name].shape != shape:
            reshaped.append(f"{name} {tuple(weights[name].shape)}, expected {shape}")
    reasons = []
    if missing:
        reasons.append(f"{len(missing)} of {len(shapes)} tensors missing{listed(missing, 1)}")
    if reshaped:
        reasons.append(f"{len(reshaped)} of another shape{listed(reshaped, 1)}")
    if others:
        reasons.append(f"{len(others)} unexpected{listed(others, 1)}")
    return "; ".join(reasons)


def named(network: Network) -> str:
    return printable(network.place.rstrip(".") or "the top level", 60)


def check_numbers(weights: dict, backbone: nn.Module, path: object) -> None:
    """A ValueError if a weight is not finite, or is quantized: loading would take its integers for
    the weight itself."""
    for name, own in backbone.state_dict().items():
        if name not in weights or not own.is_floating_point():
            continue
        if not weights[name].is_floating_point():
            raise ValueError(f"{path}: {name} is of {weights[name].dtype}, expected floating point")
        if not weights[name].float().isfinite().all():
            raise ValueError(
                f"{path}: {name} holds a number that is not finite; the file is damaged, or its "
                "training had diverged"
            )
