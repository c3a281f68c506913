"""TODO"""

import copy
import functools
import http.server
import itertools
import math
import pickle
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import random
from torch import nn

import backbones
import iml_gcn
import run
import tresnet
from backbones import resnet


def gcn_head(n, d):
    return iml_gcn.LabelGCN(torch.zeros(n, d), torch.zeros(n, n), 2048)


@pytest.mark.parametrize(
    ("make_head", "expected"),
    [  # TResNet's published numbers, then the paper's: body, two matrices, graph (README, 16)
        (nn.Identity, 29_340_032),
        (lambda: iml_gcn.linear_head(2048, 1000), 31_389_032),
        (lambda: iml_gcn.linear_head(2048, 80), 29_503_952),
        (lambda: gcn_head(80, 80), 31_525_504),  # F_PCA: + 80 * 1024 + 1024 * 2048 + 80 * 80
        (lambda: gcn_head(80, 2048), 33_540_736),  # F_I: + 2048 * 1024 + 1024 * 2048 + 80 * 80
        (lambda: gcn_head(500, 500), 32_199_184),  # VG-500, F_PCA: the same with n = d = 500
    ],
)
def test_models_have_the_published_number_of_parameters(make_head, expected):
    with torch.device("meta"):
        model = iml_gcn.Model(tresnet.tresnet_m(), make_head())
    assert run.count_parameters(model) == expected


@pytest.mark.parametrize(
    ("make", "labels", "printed"),
    [  # Table 1's other rows; "44.5 M" counts ImageNet's 1000 classes
        (tresnet.tresnet_l, 80, 53.8),
        (resnet.resnet101, 1000, 44.5),
        (tresnet.tresnet_m, 80, 29.5),
    ],
)
def test_direct_models_have_the_parameters_that_table_1_prints(make, labels, printed):
    with torch.device("meta"):
        backbone = make()
        model = iml_gcn.Model(backbone, iml_gcn.linear_head(backbone.num_features, labels))
    assert round(run.count_parameters(model) / 1e6, 1) == printed


def test_ml_gcn_has_the_parameters_that_table_1_prints():
    with torch.device("meta"):
        model = iml_gcn.Model(resnet.resnet101("max"), gcn_head(80, 300))
    assert round(run.count_parameters(model) / 1e6, 1) == 44.9


def test_tresnet_m_maps_224_pixels_to_2048_channels_of_7_by_7():
    with torch.device("meta"):
        features = tresnet.tresnet_m().forward_features(torch.zeros(1, 3, 224, 224))
    assert features.shape == (1, 2048, 7, 7)


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
    names (in-place ABN: <conv>.0 and <conv>.1, one deeper where a blur follows), the same under
    timm's, and the features (B, D) of `images` in double precision."""
    torch.manual_seed(1)
    state, timm = {}, {}

    def weight(name, timm_name, value):
        state[f"body.{name}"] = timm[f"body.{timm_name}"] = value
        return value.double()

    def conv(x, name, c_out, kernel, slope, blur=False):
        path, fan_in = f"{name}.0" if blur else name, x.shape[1] * kernel**2
        w = torch.randn(c_out, x.shape[1], kernel, kernel) * math.sqrt(2 / fan_in)
        x = F.conv2d(x, weight(f"{path}.0.weight", f"{name}.conv.weight", w), padding=kernel // 2)
        norm = {"weight": (torch.rand(c_out) + 0.5) * torch.randn(c_out).sign()}  # either sign
        norm |= {"bias": torch.randn(c_out) / 10, "running_mean": torch.randn(c_out) / 10}
        norm |= {"running_var": torch.rand(c_out) + 0.5, "num_batches_tracked": torch.tensor(7)}
        norm = {k: weight(f"{path}.1.{k}", f"{name}.bn.{k}", v) for k, v in norm.items()}
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
            w = weight(f"{name}.{fc}.weight", f"{name}.{fc}.weight", w).flatten(1)
            gate = F.linear(gate, w, weight(f"{name}.{fc}.bias", f"{name}.{fc}.bias", bias))
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
    return state | head, timm | head, x.mean((2, 3))


IMAGES = torch.rand(2, 3, 68, 96, generator=torch.Generator().manual_seed(5))


def assert_computes(backbone, expected):
    with torch.no_grad():
        ours = backbone.double().eval()(IMAGES.double())
    assert expected.std() > 0.1  # else everything were close to everything
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_released_tresnet_m_weights_load_and_compute_what_the_released_network_does(tmp_path):
    state, _, features = released_network(*M, IMAGES)
    torch.save({"model": state}, tmp_path / "m.pth")
    backbone = tresnet.tresnet_m()
    head = backbones.load_weights(backbone, tmp_path / "m.pth")
    assert torch.equal(head["weight"], state["head.fc.weight"])
    assert len(state) == 434  # as many as the released files have
    assert_computes(backbone, features)


def test_released_weights_load_with_module_prefix_other_top_key_and_blur_filters(tmp_path):
    state, _, features = released_network(*TINY, IMAGES)
    entries = {f"module.{name}": value for name, value in state.items()}
    entries["module.body.layer2.0.conv1.1.filt"] = torch.rand(16, 1, 3, 3)
    torch.save({"epoch": 3, "state_dict": entries}, tmp_path / "tiny.pth")
    backbone = tresnet.tresnet_tiny()
    backbones.load_weights(backbone, tmp_path / "tiny.pth")
    norm = state["body.layer3.0.conv2.0.1.weight"]  # under the nested names, too
    assert (norm < 0).any()
    assert torch.equal(backbone.layer3[0].conv2.bn.weight, norm.abs() + 1e-5)
    assert_computes(backbone, features)


def test_timm_names_load_with_the_norm_weights_untouched(tmp_path):
    _, state, _ = released_network(*TINY, IMAGES)
    torch.save(state, tmp_path / "timm.pth")
    backbone = tresnet.tresnet_tiny()
    backbones.load_weights(backbone, tmp_path / "timm.pth")
    for name, value in backbone.state_dict().items():
        if "num_batches_tracked" not in name:
            assert torch.equal(value, state[f"body.{name}"]), name


@pytest.mark.parametrize(
    ("name", "value", "culprit"),
    [
        ("body.layer3.1.conv2.0.weight", None, "layer3.1.conv2"),  # missing
        ("body.layer2.0.se.fc1.bias", None, "layer2.0.se.fc1.bias"),
        ("body.layer1.1.conv1.0.weight", torch.zeros(16, 16, 3, 3), "layer1.1.conv1"),  # extra
        ("body.layer1.0.conv1.1.bias", torch.zeros(3), "layer1.0.conv1"),  # wrong shape
        ("body.conv1.1.weight", "text", "conv1.1.weight"),  # no tensor
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name_and_change_nothing(
    tmp_path, name, value, culprit
):
    state = released_network(*TINY, IMAGES)[0] | {name: value}
    torch.save({"model": {k: v for k, v in state.items() if v is not None}}, tmp_path / "bad.pth")
    backbone = tresnet.tresnet_tiny()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    with pytest.raises(ValueError, match=culprit):
        backbones.load_weights(backbone, tmp_path / "bad.pth")
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


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


RESNET_101 = (3, 4, 23, 3)


def torchvision_names():
    """torchvision's 624 key names of ResNet-101 and the shapes He et al.'s Table 1 gives them."""

    def norm(name, channels):
        return {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean")} | {
            f"{name}.running_var": (channels,),
            f"{name}.num_batches_tracked": (),
        }

    shapes = {"conv1.weight": (64, 3, 7, 7)} | norm("bn1", 64)
    c_in = 64
    for stage, blocks in enumerate(RESNET_101, 1):
        planes = 32 * 2**stage
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            convs = [(planes, c_in, 1, 1), (planes, planes, 3, 3), (4 * planes, planes, 1, 1)]
            for k, shape in enumerate(convs, 1):
                shapes |= {f"{name}.conv{k}.weight": shape} | norm(f"{name}.bn{k}", shape[0])
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * planes, c_in, 1, 1)
                shapes |= norm(f"{name}.downsample.1", 4 * planes)
            c_in = 4 * planes
    return shapes | {"fc.weight": (1000, 2048), "fc.bias": (1000,)}


def test_torchvisions_resnet101_file_loads_strictly_and_returns_its_classifier(tmp_path):
    names = torchvision_names()
    state = {k: torch.randn(s) if s else torch.tensor(0) for k, s in names.items()}
    torch.save(state, tmp_path / "resnet101.pth")
    backbone = resnet.resnet101()
    head = backbones.load_weights(backbone, tmp_path / "resnet101.pth")
    assert head["weight"].equal(state["fc.weight"])
    assert head["bias"].equal(state["fc.bias"])
    ours = backbone.state_dict()
    assert set(ours) == {k for k in names if not k.startswith("fc.")}
    assert all(ours[k].equal(state[k]) for k in ours if "num_batches" not in k)
    del state["layer3.22.conv2.weight"]
    torch.save(state, tmp_path / "resnet101.pth")
    with pytest.raises(ValueError, match=r"missing layer3\.22\.conv2\.weight"):
        backbones.load_weights(backbone, tmp_path / "resnet101.pth")


def test_resnet_normalises_with_imagenets_mean_and_deviation():
    backbone = resnet.ResNet((1, 1, 1, 1)).eval()
    seen = []
    backbone.conv1.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    backbone(
        torch.tensor([0.485, 0.456 + 0.224, 0.406 - 0.225]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    )
    assert seen[0][0, :, 5, 7].tolist() == pytest.approx([0, 1, -1], abs=1e-6)


@pytest.mark.parametrize("make", [tresnet.tresnet_tiny, lambda pool: resnet.ResNet((1,) * 4, pool)])
def test_max_pooling_keeps_the_largest_activation_of_every_channel(make):
    backbone = make(pool="max").eval()
    images = torch.rand(2, 3, 64, 64)
    features, maps = backbone(images).tolist(), backbone.forward_features(images).tolist()
    for b, c in itertools.product(range(2), (0, 7, 100)):
        assert features[b][c] == max(max(row) for row in maps[b][c])


@pytest.fixture
def server(tmp_path):
    """A web server on this machine for the files in tmp_path/www, and what it is asked for."""
    requests, folder = [], tmp_path / "www"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, form, *values):
            requests.append(self.path)

    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}", folder, requests
        httpd.shutdown()


def test_weights_are_downloaded_once_and_a_failure_says_where_to_put_them(
    server, tmp_path, monkeypatch
):
    url, folder, requests = server
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    there, here = tresnet.tresnet_tiny(), tresnet.tresnet_tiny()
    torch.save({"model": there.state_dict()}, folder / "tiny.pth")
    for _ in range(2):
        assert backbones.load_weights(here, f"{url}/tiny.pth") == {}
    assert all(a.equal(b) for a, b in zip(here.parameters(), there.parameters(), strict=True))
    assert requests == ["/tiny.pth"]
    with pytest.raises(FileNotFoundError) as error:
        backbones.load_weights(here, f"{url}/absent.pth")
    assert f"{url}/absent.pth" in str(error.value)
    assert str(tmp_path / "hub" / "checkpoints") in str(error.value)


def plain_abn(x, weight, bias, slope):
    """Batch norm by the batch's own statistics and leaky ReLU, as autograd differentiates them."""
    return F.leaky_relu(F.batch_norm(x, None, None, weight, bias, training=True), slope)


def gradients(function, *inputs):
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    output = function(*inputs)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape).cos()
    return output.detach(), torch.autograd.grad((output * weights).sum(), inputs)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("slope", [1e-2, 1e-3])
def test_in_place_abn_has_the_gradients_of_batch_norm_and_leaky_relu(slope, layout):
    norm = tresnet.ABN(5, slope).double()
    x = random(4, 5, 6, 3).to(memory_format=layout)
    weight, bias = torch.tensor([1.3, -0.4, 0.1, 2, 1e-3]).double(), random(5, seed=1)

    def in_place(x, weight, bias):
        parameters = {"weight": weight, "bias": bias}
        return torch.func.functional_call(norm, parameters, x)

    expected = gradients(lambda *inputs: plain_abn(*inputs, slope), x, weight, bias)
    torch.testing.assert_close(gradients(in_place, x, weight, bias), expected, rtol=0, atol=1e-10)
    twin = nn.BatchNorm2d(5).double()
    twin(x)
    assert all(torch.equal(a, b) for a, b in zip(norm.buffers(), twin.buffers(), strict=True))
    inputs = [t.clone().requires_grad_() for t in (x[:2, :, :2, :2], weight, bias)]
    assert torch.autograd.gradcheck(in_place, inputs, fast_mode=True)


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


def steps(backbone, images, lean, monkeypatch):
    """Two SGD steps from the same weights: losses, gradients and the state after them."""
    model = copy.deepcopy(backbone).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    with monkeypatch.context() as patch:
        if not lean:
            patch.setattr(tresnet, "lean", lambda module: False)
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
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
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


@pytest.mark.parametrize(
    "make", [tresnet.tresnet_tiny, functools.partial(resnet.ResNet, (1, 1, 2, 1))]
)
def test_the_deploy_form_computes_the_same_logits_with_no_norm_and_no_graph(make):
    torch.manual_seed(0)
    backbone = make()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    head = iml_gcn.LabelGCN(random(7, 5), torch.rand(7, 7), backbone.num_features)
    model = iml_gcn.Model(backbone, head).eval()
    images = torch.rand(3, 3, 64, 64)
    with torch.inference_mode():
        expected = model(images)
        folded = model.fold()
        torch.testing.assert_close(folded(images), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model(images), expected, rtol=0, atol=0)  # it is a copy
        rounded = tresnet.fold(model, torch.bfloat16)(images)
    assert rounded.dtype == torch.float32
    scale = expected.std(0).mean()
    assert 0 < (rounded - expected).abs().max() < 0.05 * expected.abs().max() + scale
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    direct = iml_gcn.Model(backbone, nn.Linear(backbone.num_features, 7, bias=False))
    sizes = [sum(p.numel() for p in m.parameters()) for m in (folded, tresnet.fold(direct))]
    assert sizes[0] == sizes[1]
