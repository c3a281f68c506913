"""The backbones, the weights they load, the layers that keep less for backward, the deploy form.

Oracles: the released TResNet written a second time in torch's functions, torchvision's names and
shapes, the paper's Table 1, and autograd through plain layers.
"""

import copy
import itertools
import math
import pickle
import urllib.error
import urllib.response
from email.message import Message

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import random
from torch import nn

import backbones
import iml_gcn
import tresnet
from backbones import resnet
from runtime import lean


def gcn_head(num_features):
    """ML-GCN's, of COCO's 80 labels with GloVe's 300 numbers a word."""
    return iml_gcn.LabelGCN(torch.zeros(80, 300), torch.zeros(80, 80), num_features)


@pytest.mark.parametrize(
    ("make", "make_head", "printed"),
    [
        (tresnet.tresnet_m, lambda D: iml_gcn.linear_head(D, 80), 29.5),
        (tresnet.tresnet_l, lambda D: iml_gcn.linear_head(D, 80), 53.8),
        (resnet.resnet101, lambda D: iml_gcn.linear_head(D, 1000), 44.5),  # with ImageNet's head
        (resnet.resnet101, gcn_head, 44.9),
    ],
)
def test_models_have_the_millions_of_parameters_that_table_1_prints(make, make_head, printed):
    with torch.device("meta"):
        backbone = make()
        model = iml_gcn.Model(backbone, make_head(backbone.num_features))
    assert round(iml_gcn.count_parameters(model) / 1e6, 1) == printed


def test_stem_stacks_pixels_by_row_then_column_then_colour():
    # Each pixel is worth the number of the channel it belongs in: 12 a row, 3 a column, 1 a colour.
    y, x, colour = np.meshgrid(np.arange(32), np.arange(36), np.arange(3), indexing="ij")
    values = 12 * (y % 4) + 3 * (x % 4) + colour  # (H, W, 3)
    images = torch.from_numpy(values).permute(2, 0, 1)[None].float()
    seen = []
    backbone = tresnet.tresnet_tiny()
    backbone.conv1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for layout in (torch.contiguous_format, torch.channels_last):
        backbone(images.contiguous(memory_format=layout))
        expected = torch.arange(48.0)[None, :, None, None].expand(1, 48, 8, 9)
        assert torch.equal(seen.pop(), expected)


def test_blur_keeps_a_constant_and_spreads_an_impulse_by_1_2_1():
    constant = torch.full((1, 2, 6, 5), 3.0)
    assert torch.equal(tresnet.Blur()(constant), torch.full((1, 2, 3, 3), 3.0))
    impulse = torch.zeros(1, 2, 6, 6)
    impulse[0, 1, 2, 3] = 16
    # Centres are rows and columns 0, 2, 4. Row 2 meets a centre (weight 2); column 3 lies between
    # columns 2 and 4 (weight 1 each). Only channel 1 sees it.
    expected = torch.zeros(1, 2, 3, 3)
    expected[0, 1, 1, 1] = expected[0, 1, 1, 2] = 2
    assert torch.equal(tresnet.Blur()(impulse), expected)
    corner = torch.zeros(1, 1, 4, 4)
    corner[0, 0, 1, 1] = 16  # reflected, it stands at -1, too: 4 times in the window of (0, 0)
    assert torch.equal(tresnet.Blur()(corner), torch.tensor([[[[4.0, 2.0], [2.0, 1.0]]]]))


@pytest.mark.parametrize(("C", "H", "W"), [(3, 102, 64), (3, 64, 102), (3, 64, 28), (4, 64, 64)])
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


def assert_computes(backbone, expected):
    with torch.no_grad():
        ours = backbone.double().eval()(IMAGES.double())
    assert expected.std() > 0.1  # else everything were close to everything
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_released_tresnet_m_weights_load_and_compute_what_the_released_network_does(tmp_path):
    state, features = released_network(*M, IMAGES)
    torch.save({"model": state}, tmp_path / "m.pth")
    backbone = tresnet.tresnet_m()
    head = backbones.load_weights(backbone, tmp_path / "m.pth")
    assert torch.equal(head["weight"], state["head.fc.weight"])
    assert len(state) == 434  # as many as the released files have
    assert_computes(backbone, features)


def test_released_weights_load_with_module_prefix_other_top_key_and_blur_filters(tmp_path):
    state, features = released_network(*TINY, IMAGES)
    entries = {f"module.{name}": value for name, value in state.items()}
    entries["module.body.layer2.0.conv1.1.filt"] = torch.rand(16, 1, 3, 3)
    torch.save({"epoch": 3, "state_dict": entries}, tmp_path / "tiny.pth")
    backbone = tresnet.tresnet_tiny()
    backbones.load_weights(backbone, tmp_path / "tiny.pth")
    norm = state["body.layer3.0.conv2.0.1.weight"]  # under the nested names, too
    assert (norm < 0).any()
    assert torch.equal(backbone.layer3[0].conv2.bn.weight, norm.abs() + 1e-5)
    assert_computes(backbone, features)


@pytest.mark.parametrize(
    ("name", "value", "culprit"),
    [
        ("body.layer3.1.conv2.0.weight", None, "missing layer3.1.conv2"),
        ("body.layer1.1.conv1.0.weight", torch.zeros(16, 16, 3, 3), "unexpected 'layer1.1.conv1"),
        ("body.layer1.0.conv1.1.bias", torch.zeros(3), "layer1.0.conv1"),  # shape
        ("body.conv1.1.weight", torch.ones(16, dtype=torch.bool), "bool"),  # no abs() of these
        ("body.conv1.0.weight", torch.zeros(16, 48, 3, 3, dtype=torch.complex64), "complex64"),
        ("conv1.1.weight", torch.ones(16), "two entries for 'conv1.bn.weight'"),
        ("body.conv1.1.weight", "text", "entry 'body.conv1.1.weight' is a str"),
        ("body.conv1.1.weight", [[]], "is a list"),
        ("x" * 10**6, torch.zeros(1), "unexpected 'xxx"),
        ("\x1b[31m\n", torch.zeros(1), "unexpected '\\x1b[31m"),
        (7, torch.zeros(1), "entry 7 is a Tensor, expected named tensors"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name_and_change_nothing(
    tmp_path, name, value, culprit, recwarn
):
    state = released_network(*TINY, IMAGES)[0] | {name: value}
    torch.save({"model": {k: v for k, v in state.items() if v is not None}}, tmp_path / "bad.pth")
    backbone = tresnet.tresnet_tiny()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    with pytest.raises(ValueError, match=r"bad\.pth") as error:
        backbones.load_weights(backbone, tmp_path / "bad.pth")
    assert culprit in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 450
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    assert len(recwarn) == 0


class Bomb:
    """Unpickled, it makes an empty file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("write", [torch.save, lambda o, path: path.write_bytes(pickle.dumps(o))])
def test_a_checkpoint_that_would_run_code_is_refused_and_does_not_run(tmp_path, write):
    write({"model": Bomb(tmp_path / "ran")}, tmp_path / "bomb.pth")
    with pytest.raises(ValueError, match=r"bomb\.pth"):
        backbones.load_weights(tresnet.tresnet_tiny(), tmp_path / "bomb.pth")
    assert not (tmp_path / "ran").exists()


def torchvision_shapes():
    """torchvision's 624 key names of ResNet-101 and the shapes He et al.'s Table 1 gives them."""
    shapes = {"fc.weight": (1000, 2048), "fc.bias": (1000,)}

    def conv(name, norm, *shape):
        shapes[f"{name}.weight"] = shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{part}"] = shape[:1]
        shapes[f"{norm}.num_batches_tracked"] = ()

    conv("conv1", "bn1", 64, 3, 7, 7)
    c_in = 64
    for stage, blocks in enumerate((3, 4, 23, 3), 1):
        c = 32 * 2**stage
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            for k, shape in enumerate([(c, c_in, 1, 1), (c, c, 3, 3), (4 * c, c, 1, 1)], 1):
                conv(f"{name}.conv{k}", f"{name}.bn{k}", *shape)
            if block == 0:
                conv(f"{name}.downsample.0", f"{name}.downsample.1", 4 * c, c_in, 1, 1)
            c_in = 4 * c
    return shapes


def test_torchvisions_resnet101_file_loads_strictly_and_returns_its_classifier(tmp_path):
    shapes = torchvision_shapes()
    state = {k: torch.randn(s) if s else torch.tensor(0) for k, s in shapes.items()}
    torch.save(state, tmp_path / "resnet101.pth")
    backbone = resnet.resnet101()
    head = backbones.load_weights(backbone, tmp_path / "resnet101.pth")
    assert head["weight"].equal(state["fc.weight"])
    assert head["bias"].equal(state["fc.bias"])
    ours = backbone.state_dict()
    assert set(ours) == {k for k in shapes if not k.startswith("fc.")}
    assert len(shapes) - 2 == 624
    assert all(ours[k].equal(state[k]) for k in ours if "num_batches" not in k)


def test_resnet_normalises_with_imagenets_mean_and_deviation():
    backbone = resnet.ResNet((1, 1, 1, 1)).eval()
    seen = []
    backbone.conv1.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    backbone(
        torch.tensor([0.485, 0.456 + 0.224, 0.406 - 0.225]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    )
    assert seen[0][0, :, 5, 7].tolist() == pytest.approx([0, 1, -1], abs=1e-6)


def small_resnet(pool="avg"):
    return resnet.ResNet((1, 1, 2, 1), pool)


@pytest.mark.parametrize(
    ("make", "H", "W"),
    [(tresnet.tresnet_tiny, 64, 96), (small_resnet, 20, 30), (small_resnet, 75, 101)],
)
def test_pooling_is_over_a_map_of_a_32nd_of_the_image_whatever_the_size_resnet_gets(make, H, W):
    images = torch.rand(2, 3, H, W)
    for pool, of in (("max", max), ("avg", lambda values: sum(values) / len(values))):
        backbone = make(pool=pool).eval()
        features, maps = backbone(images).tolist(), backbone.forward_features(images)
        assert maps.shape[2:] == (math.ceil(H / 32), math.ceil(W / 32))
        for b, c in itertools.product(range(2), (0, 7, 100)):
            assert features[b][c] == pytest.approx(of(maps[b, c].flatten().tolist()), rel=1e-5)


@pytest.mark.parametrize("make", [tresnet.TResNet, resnet.ResNet])
def test_a_pooling_that_there_is_not_is_refused(make):
    with pytest.raises(ValueError, match="pool is 'gem'"):
        make((1, 1, 1, 1), pool="gem")


def test_weights_are_downloaded_once_and_a_failure_says_where_to_put_them(tmp_path, monkeypatch):
    there, here, asked = tresnet.tresnet_tiny(), tresnet.tresnet_tiny(), []
    there.conv1.bn.weight.data.uniform_(-1, 1)  # under our names, and timm's, it keeps its sign
    torch.save({"model": there.state_dict()}, tmp_path / "tiny.pth")

    def urlopen(request):
        asked.append(request.full_url)
        if request.full_url.endswith("absent.pth"):
            raise urllib.error.HTTPError(request.full_url, 404, "Not Found", Message(), None)
        content = (tmp_path / "tiny.pth").open("rb")
        return urllib.response.addinfourl(content, Message(), request.full_url)

    monkeypatch.setattr(torch.hub, "urlopen", urlopen)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    for _ in range(2):
        assert backbones.load_weights(here, "https://example.org/tiny.pth") == {}
    assert all(a.equal(b) for a, b in zip(here.parameters(), there.parameters(), strict=True))
    assert asked == ["https://example.org/tiny.pth"]
    with pytest.raises(FileNotFoundError, match=r"https://example\.org/absent\.pth") as error:
        backbones.load_weights(here, "https://example.org/absent.pth")
    assert str(tmp_path / "hub" / "checkpoints") in str(error.value)


def plain_abn(x, weight, bias, slope):
    """Batch norm by the batch's own statistics and leaky ReLU, as autograd differentiates them."""
    return F.leaky_relu(F.batch_norm(x, None, None, weight, bias, training=True), slope)


def gradients(function, *inputs):
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    output = function(*inputs)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape).cos()
    return output.detach(), torch.autograd.grad((output * weights).sum(), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_place_abn_is_stable_where_a_weight_is_next_to_nothing(dtype):
    # Below the rounding of the bias, x is lost in the output: what is left of it, at most 1/2 off
    # once normalised, must not blow up any gradient. float64 knows what they are.
    x, bias = random(16, 6, 8, 8), torch.tensor([0.0, 0.51, -0.51, 0.3, 1.7, -2.3]).double()
    weight = torch.tensor([0.0, 0.0, 1e-8, -1e-6, 1e-5, -1e-4]).double()
    floor = torch.finfo(dtype).eps * bias.abs() + 1e-5
    raised = weight.abs().maximum(floor).copysign(weight)
    _, expected = gradients(lambda *inputs: plain_abn(*inputs, 1e-2), x, raised, bias)
    norm = tresnet.ABN(6, 1e-2)
    x, weight, bias = x.to(dtype), weight.float(), bias.float()

    def in_place(x, weight, bias):
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, x)

    _, found = gradients(in_place, x, weight, bias)
    # What rounding of the output does to x, normalised: a bound on every channel's error.
    worst = torch.finfo(dtype).eps * bias.abs() / raised.abs() + 1e-3
    grad_x, grad_weight, grad_bias = (tensor.double() for tensor in found)
    assert ((grad_x - expected[0]).abs().amax((0, 2, 3)) < 2 * raised.abs() * worst + 1e-3).all()
    assert ((grad_weight - expected[1]).abs() < worst * 16 * 64).all()
    torch.testing.assert_close(grad_bias, expected[2], rtol=0.02, atol=0.5)


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


def test_training_that_keeps_less_takes_the_same_steps(monkeypatch):
    # Ours by hand and by recomputation, against autograd through the plain layers.
    torch.manual_seed(0)
    backbone = tresnet.tresnet_tiny().double().to(memory_format=torch.channels_last)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):  # weights of either sign
            module.weight.data.uniform_(0.5, 1.5)[::3] *= -1
    images = random(3, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    expected = steps(backbone, images, False, monkeypatch)
    found = steps(backbone, images, True, monkeypatch)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    assert found[2]["layer4.0.conv3.bn.num_batches_tracked"] == 2


def saved_bytes(model, images):
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes(), tensor  # the tensor, so no pointer comes again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(images)
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    return sum(size for pointer, (size, _) in kept.items() if pointer not in own)


def test_training_keeps_what_its_parts_need_and_no_more():
    # A block keeps the inputs of its two convolutions, the second's output, and its own output, the
    # next block's input: four maps and some vectors. Not the norm's output, nor the gated one.
    images = random(2, 16, 8, 8).float()
    block = tresnet.BasicBlock(16, 16, stride=1, se=True)
    maps = images.nbytes * 4
    assert maps <= saved_bytes(block, images) < maps + 1024
    conv = tresnet.ConvABN(16, 16, 3, stride=2)
    maps = images.nbytes * 2  # the convolution's input, its activated norm's output
    assert maps <= saved_bytes(conv, images) < maps + 2048


def test_compiled_training_takes_the_steps_of_uncompiled(monkeypatch):
    torch.manual_seed(0)
    backbone = tresnet.tresnet_tiny().double()
    images = random(2, 3, 32, 32).repeat(1, 1, 2, 2)
    expected = steps(backbone, images, True, monkeypatch)[1]
    backbone.compile(backend="aot_eager")  # torch's tracing without its C++ compiler
    torch.testing.assert_close(steps(backbone, images, True, monkeypatch)[1], expected)


class NormAfterReLU(nn.Module):
    """A user's backbone, whose norm cannot go into the convolution: ReLU lies between them."""

    num_features = 8

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8))

    def forward(self, images):
        return self.layers(images).mean((2, 3))


@pytest.mark.parametrize("make", [tresnet.tresnet_tiny, small_resnet, NormAfterReLU])
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
    features, logits = backbone(images), model(images)
    folded = model.train().fold()  # in training it is folded as in evaluation
    torch.testing.assert_close(folded.backbone(images), features, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(folded(images), logits, rtol=1e-4, atol=1e-4)
    assert model.training  # it is a copy
    torch.testing.assert_close(model.eval()(images), logits, rtol=0, atol=0)
    norms = [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == (make is NormAfterReLU)
    assert sum(p.numel() for p in folded.head.parameters()) == 7 * D
