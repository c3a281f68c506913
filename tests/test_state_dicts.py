"""Weights in files of other programs: found by the backbone's own names, or refused.

Oracles: the layouts that torch, torch.compile, DDP, Lightning, timm and others write, made here by
hand of known weights.
"""

import argparse
import pathlib

import pytest
import torch
from torch import nn

import backbones
import tresnet
from backbones import resnet


def tiny_state(seed):
    """Weights of the tiny TResNet and of a classifier of 5 labels."""
    torch.manual_seed(seed)
    state = tresnet.tresnet_tiny().state_dict()
    return state | {"head.fc.weight": torch.rand(5, 512), "head.fc.bias": torch.rand(5)}


RAW, AVERAGED = tiny_state(1), tiny_state(2)
SMALLER = {"layer1.0.conv1.conv.weight": torch.rand(9, 9, 3, 3), "conv1.bn.bias": torch.rand(3)}
ADAM = {"state": {i: {"exp_avg": p} for i, p in enumerate(RAW.values())}, "param_groups": [1]}


def put(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def beside(state, wrapper="", head="head."):
    """A backbone and a classifier side by side, as ours are."""
    renamed = {}
    for name, tensor in state.items():
        inside = name.removeprefix("head.fc.")
        renamed[f"{head}{inside}" if inside != name else f"backbone.{wrapper}{name}"] = tensor
    return renamed


SAME = [  # the place, and the file
    ("", RAW),
    ("", put("_orig_mod.", RAW)),  # torch.compile
    ("module", put("module.", RAW)),  # DDP
    ("module", put("module._orig_mod.", RAW)),  # DDP of a compiled model
    ("module", put("_orig_mod.module.", RAW)),  # a compiled DDP
    ("model_state_dict", {"epoch": 1, "model_state_dict": RAW, "optimizer_state_dict": ADAM}),
    ("model.module", {"model": put("module.", RAW), "optimizer": ADAM}),
    ("net", {"net": RAW, "acc": 93.1, "epoch": 7}),
    ("state_dict.model", {"state_dict": put("model.", RAW), "loops": {"fit": {}}}),  # Lightning
    ("state_dict.net", {"state_dict": put("net.", RAW) | {"loss.weight": torch.rand(5)}}),
    ("state_dict.model", {"state_dict": put("model._orig_mod.", RAW)}),
    ("state_dict.model.backbone", {"state_dict": put("model.", beside(RAW))}),
    ("backbone", beside(RAW)),
    ("backbone", beside(RAW, "_orig_mod.", "fc.")),
    ("state_dict", {"state_dict": RAW, "model_ema": SMALLER}),  # of another network
    ("student", put("student.", RAW) | put("teacher.", SMALLER)),
    ("model", {"model": RAW, "state_dict": dict(RAW)}),  # twice the same
    ("a.b.c.d", {"a": {"b": {"c": {"d": RAW}}}}),
]
TAKEN = [  # averaged weights beside raw ones: two places, and the file
    ("state_dict_ema", "state_dict", {"state_dict": RAW, "state_dict_ema": AVERAGED}),  # timm
    ("model_ema", "model", {"model": RAW, "model_ema": AVERAGED, "optimizer": ADAM}),
    ("ema.module", "model", {"model": RAW, "ema": {"module": AVERAGED, "updates": 9}}),
    ("ema", "model", {"ema": AVERAGED, "model": RAW}),
    ("ema_state_dict", "net.module", {"net": put("module.", RAW), "ema_state_dict": AVERAGED}),
    ("ema_model.module", "model", put("model.", RAW) | put("ema_model.module.", AVERAGED)),
    ("swa", "params", {"params": RAW, "swa": AVERAGED}),
]


def load(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    backbone = tresnet.tresnet_tiny()
    return backbone, backbones.load_weights(backbone, tmp_path / "weights.pth")


def assert_loaded(backbone, head, state):
    assert all(tensor.equal(state[name]) for name, tensor in backbone.state_dict().items())
    assert head.keys() == {"weight", "bias"}
    assert head["weight"].equal(state["head.fc.weight"])


@pytest.mark.parametrize(("place", "content"), SAME)
def test_weights_are_found_whatever_stands_in_front_of_them(tmp_path, capsys, place, content):
    assert_loaded(*load(tmp_path, content), RAW)
    text = capsys.readouterr().out.splitlines()[0].split(": loaded ")[1]
    count = len([name for name in RAW if not name.endswith("num_batches_tracked")]) - 2
    assert text.startswith(f"{count} of {count} backbone tensors")
    assert (f", from {place}" in text) == bool(place)
    assert "averaged" not in text
    assert ("left out: 1 tensors" in text) == (place == "state_dict.net")


@pytest.mark.parametrize(("place", "other", "content"), TAKEN)
def test_of_raw_and_averaged_weights_it_is_said_which_are_taken(
    tmp_path, capsys, place, other, content
):
    assert_loaded(*load(tmp_path, content), AVERAGED)
    text = capsys.readouterr().out
    assert f", from {place}, averaged weights" in text
    assert f"; left out, the same network: {other}" in text


def test_averages_of_parameters_alone_are_left_out(tmp_path, capsys):
    average = {name: t for name, t in AVERAGED.items() if "running" not in name}
    assert_loaded(*load(tmp_path, {"model": RAW, "ema": average}), RAW)
    assert ", from model; left out, the same network: ema" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content",
    [
        {"student": RAW, "teacher": AVERAGED},
        put("module.encoder_q.", RAW) | put("module.encoder_k.", AVERAGED),
        {"model": RAW, "ema": AVERAGED, "swa": tiny_state(3)},
        {"a": RAW, "b": {"c": AVERAGED}},
    ],
)
def test_two_networks_of_which_none_is_to_be_preferred_are_refused(tmp_path, content):
    with pytest.raises(ValueError, match=r"holds this network [23] times, .* in a file of their"):
        load(tmp_path, content)


def without(name):
    return {key: tensor for key, tensor in RAW.items() if key != name}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"state_dict": put("model.", without("conv1.bn.bias"))}, "missing: conv1.bn.bias"),
        (
            {"state_dict": put("model.", RAW | {"conv9.weight": torch.rand(3)})},
            "unexpected: conv9",
        ),
        ({"ema": SMALLER}, "tensors missing"),
        ({"ema": RAW | {"conv1.bn.bias": torch.ones(16).to_sparse()}}, "conv1.bn.bias is sparse"),
        (RAW | {"conv1.bn.bias": torch.ones(16, device="meta")}, "conv1.bn.bias is sparse, nested"),
        ({"epoch": 3}, "tensors missing"),
        (RAW | {"conv1.bn.bias": torch.ones(16, dtype=torch.int8)}, "is of torch.int8"),
        (RAW | {"conv1.bn.bias": torch.full((16,), torch.nan)}, "conv1.bn.bias holds a number"),
        (RAW | {"conv1.bn.bias": torch.ones(17)}, "another shape: conv1.bn.bias"),
    ],
)
def test_nothing_is_loaded_in_part(tmp_path, content, words):
    with pytest.raises(ValueError, match=words) as error:
        load(tmp_path, content)
    assert str(error.value).startswith(f"{tmp_path}/weights.pth")
    assert str(error.value).isprintable()


def test_names_of_a_resnet_that_end_alike_are_kept_apart(tmp_path):
    torch.manual_seed(0)
    state = resnet.ResNet((1, 1, 2, 1)).state_dict()
    torch.save({"model": put("encoder.", state)}, tmp_path / "x.pth")
    backbone = resnet.ResNet((1, 1, 2, 1))
    backbones.load_weights(backbone, tmp_path / "x.pth")
    assert all(tensor.equal(state[name]) for name, tensor in backbone.state_dict().items())


def test_a_checkpoint_that_holds_itself_ends(tmp_path):
    content = {"state_dict": RAW}
    content |= {str(i): content for i in range(300)}
    content["deep"] = {}
    for _ in range(50):
        content["deep"] = {"x": content["deep"]}
    assert_loaded(*load(tmp_path, content), RAW)


class Settings:
    pass


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize(
    ("thing", "name"),
    [
        (argparse.Namespace(lr=1), "argparse.Namespace"),
        (pathlib.PurePosixPath("x"), "pathlib.PurePosixPath"),
        (Settings(), "test_state_dicts.Settings"),
        (nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    ],
)
def test_an_object_in_a_file_is_named_with_the_way_out(tmp_path, monkeypatch, thing, name, old):
    content, path = {"state_dict": RAW, "args": thing}, tmp_path / "weights.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    with pytest.raises(ValueError, match=f"holds {name} besides its tensors") as error:
        backbones.load_weights(tresnet.tresnet_tiny(), path)
    assert "as torch.save wrote it" not in str(error.value)
    monkeypatch.chdir(tmp_path)  # the way out is one
    recipe = str(error.value).split("alone: ")[1].replace("FILE", repr(str(path)))
    exec(recipe, {"torch": torch})
    backbone = tresnet.tresnet_tiny()
    assert_loaded(backbone, backbones.load_weights(backbone, tmp_path / "weights.pth"), RAW)
