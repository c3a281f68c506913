"""Where in a checkpoint the weights of a backbone are: other programs put theirs in many places.

They nest them under keys (`state_dict`, `model_ema`, `ema.module`) and put the names of wrappers in
front of the tensors' own (`module.`, `model.`, `backbone.`). So no list of keys is kept here: a
network is where the backbone's names are, whatever stands in front of all of them.
No file is opened here.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from runtime.terminal import listed, printable

DEPTH, LONGEST, DOTS = 4, 300, 8  # of nested keys; of a tensor's name, and of what precedes it
# What torch.compile, FSDP and activation checkpointing put into names, at any place.
WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
COUNTERS = ".filt", ".num_batches_tracked"  # fixed blur kernels; torch makes the counters anew
AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged?|avg)([._]|$)")  # in a place
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

    Of raw and averaged weights it is the averaged ones, as in timm. If there are several and none
    is to be preferred, that is a ValueError. If none fits it is the one that comes nearest.
    """
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
    half = choice[0].matches / 2
    return choice[0], [named(n) for n in candidates if n is not choice[0] and n.matches > half]


def networks(checkpoint: dict, backbone: nn.Module) -> list[Network]:
    """All that a checkpoint may hold of a backbone, the best match first; at least one."""
    own_entry = getattr(backbone, "own_entry", lambda *entry: entry)
    classifier = getattr(backbone, "classifier", CLASSIFIER)
    shapes = {name: tensor.shape for name, tensor in backbone.state_dict().items()}
    shapes = {name: shape for name, shape in shapes.items() if not name.endswith(COUNTERS)}
    candidates = []
    for keys, tensors in groups(checkpoint):
        matches = defaultdict(set)  # prefix -> the backbone's names that follow it
        for name in tensors:
            parts = name.split(".", DOTS) if len(name) <= LONGEST else []
            for i in range(len(parts)):  # from the whole name on
                own, _ = own_entry(".".join(parts[i:]), tensors[name])
                if own in shapes:
                    matches["".join(f"{part}." for part in parts[:i])].add(own)
                    break
        for prefix in matches or [""]:
            network = Network(keys + prefix, matches=len(matches[prefix]))
            split(tensors, prefix, classifier, own_entry, network)
            network.whole = {n: t.shape for n, t in network.weights.items()} == shapes
            candidates.append(network)
    candidates.sort(key=lambda n: (n.whole, n.matches, len(n.weights)), reverse=True)
    return candidates or [Network("")]


def groups(checkpoint: dict) -> Iterator[tuple[str, dict]]:
    """Every dict in a checkpoint that holds tensors: the keys to it, and the tensors by name."""
    dicts, seen = [("", checkpoint, 0)], set()
    for keys, tree, depth in dicts:
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


def split(tensors: dict, prefix: str, classifier: tuple, own_entry, network: Network) -> None:
    """Sort the tensors of a group into weights, classifier, and those of something else.

    The classifier is among the names that follow the prefix, or beside it, as ours is.
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
    """ "weight" and "bias" of a linear classifier, whatever it is called."""
    return re.sub(r"^(head\.)?(_?fc\.|classifier\.)?", "", name)


def equal_weights(one: Network, other: Network) -> bool:
    """Whether two networks have the same numbers: some files hold one under two keys."""
    return all(tensor.equal(other.weights[name]) for name, tensor in one.weights.items())


def named(network: Network) -> str:
    return printable(network.place.rstrip(".") or "the top level", 60)


def check_numbers(weights: dict, backbone: nn.Module, path: object) -> None:
    """A ValueError if a weight is quantized, which loading would take for a number as it is, or
    not finite."""
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
