"""Files of the form safetensors, read without the package.

Oracles: the package, which writes them and reads them; files spoilt by hand; thousands spoilt by
chance, of which nothing may be read that the package refuses or reads otherwise. A changed byte of
a tensor is not noticed: the form has no checksums (a download has one, where the server states it).
"""

import json
import math
import sys

import numpy as np
import pytest
import torch
from test_fuzz import assert_read_or_refused, limits, mutate_bytes, mutate_json, pick  # noqa: F401

import backbones
import iml_gcn
import tresnet
from runtime import checkpoints, safetensors

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
DTYPES += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
SHAPES = [(), (1,), (3, 4), (2, 1, 5), (0,), (0, 7), (2,) * 9]


def package():
    return pytest.importorskip("safetensors.torch")


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (tensor.dtype, tensor.shape)
        if tensor.dtype is torch.bool:  # of a spoilt one a byte may be neither 0 nor 1
            assert ours[name].equal(tensor.view(torch.uint8) != 0)
        else:
            same = ours[name].flatten().view(torch.uint8), tensor.flatten().view(torch.uint8)
            assert same[0].equal(same[1])


def test_what_the_package_writes_is_read_as_it_is(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{dtype} {shape}": torch.randint(0, 100, shape, generator=generator).to(dtype)
        for dtype in DTYPES
        for shape in SHAPES
    }
    tensors['\u00e9 \u4fe1 "\\ \n'] = torch.tensor([math.nan, -math.inf, -0.0])
    path = tmp_path / "tensors.bin"  # known by its content
    package().save_file(tensors, path, metadata={"format": "pt", "by": "\u4fe1"})
    assert_equal(checkpoints.read_checkpoint(path), tensors)
    package().save_file({}, path)
    assert checkpoints.read_checkpoint(path) == {}


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [8, 8]}
RIGHT = [
    {"a": TENSOR, "empty": EMPTY},
    {"a": TENSOR | {"shape": [1] * 70 + [2]}},
    {"a": TENSOR, "__metadata__": {"a": "b"}},
]


def write(path, header, data=bytes(8), length=None):
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(content) if length is None else length
    path.write_bytes(length.to_bytes(8, "little") + content + data)
    return path


@pytest.mark.parametrize("header", RIGHT)
def test_odd_but_right_files_are_read(tmp_path, header):
    path = write(tmp_path / "x.safetensors", header)
    assert_equal(safetensors.read(path), package().load_file(path))


PLAIN = json.dumps(TENSOR).encode()
WRONG = [  # header, bytes after it, words of the sentence
    (b"", b"", "begins with ''"),
    (b"[]", b"", "begins with '\\[\\]'"),
    (b'{"a": ', b"", "Expecting value"),
    (b'{"a": ' + PLAIN + b"}x", bytes(8), "Extra data"),
    (b"{" * 10**6, b"", "Expecting property name"),
    (b'{"a":' + b"[" * 10**6, b"", "recursion"),
    (b'{"\xff": 1}', b"", "utf-8"),
    (b'{"a": %s, "a": %s}' % (PLAIN, PLAIN), bytes(8), "is there twice"),
    (b'{"a": %s, "__metadata__": NaN}' % PLAIN, bytes(8), "NaN is not JSON"),
    ({"a": TENSOR, "__metadata__": {"a": 1}}, bytes(8), "__metadata__ is {'a': 1}"),
    ({"a": TENSOR, "__metadata__": []}, bytes(8), r"__metadata__ is \[\]"),
    ({"a": [1]}, bytes(8), r"'a' is \[1\], expected dtype, shape, data_offsets"),
    ({"a": TENSOR | {"more": 1}}, bytes(8), "expected dtype, shape, data_offsets"),
    ({"a": {"dtype": "F32", "shape": [2]}}, bytes(8), "expected dtype, shape, data_offsets"),
    ({"a": TENSOR | {"dtype": "F8_E5M2"}}, bytes(8), "dtype 'F8_E5M2', expected F64, F32"),
    ({"a": TENSOR | {"dtype": ["F32"]}}, bytes(8), "dtype"),
    ({"a": TENSOR | {"shape": [2.0]}}, bytes(8), r"has \[2.0\], expected whole numbers"),
    ({"a": TENSOR | {"shape": [True, 2]}}, bytes(8), "expected whole numbers"),
    ({"a": TENSOR | {"shape": [-2, -1]}}, bytes(8), "expected whole numbers"),
    ({"a": TENSOR | {"shape": 2}}, bytes(8), "expected whole numbers"),
    ({"a": TENSOR | {"shape": [3]}}, bytes(8), "expected 12 bytes for F32"),
    ({"a": TENSOR | {"shape": [2**33, 2**33], "data_offsets": [0, 0]}}, b"", "expected 2951"),
    ({"a": TENSOR | {"shape": [2**40, 2**40, 0], "data_offsets": [0, 0]}}, b"", "for F32 of shape"),
    ({"a": TENSOR | {"data_offsets": [8, 0]}}, bytes(8), r"lies at \[8, 0\]"),
    ({"a": TENSOR | {"data_offsets": [0, 4, 8]}}, bytes(8), r"lies at \[0, 4, 8\]"),
    ({"a": TENSOR | {"data_offsets": [8, 16]}}, bytes(16), "begins at byte 8, expected 0"),
    ({"a": TENSOR, "b": TENSOR | {"data_offsets": [4, 12]}}, bytes(12), "begins at byte 4"),
    ({"a": TENSOR, "b": TENSOR | {"data_offsets": [12, 20]}}, bytes(20), "begins at byte 12"),
    ({"a": TENSOR, "b": EMPTY | {"data_offsets": [4, 4]}}, bytes(8), "begins at byte 4"),
    ({"a": TENSOR}, bytes(7), "7 bytes of tensors, expected 8"),
    ({"a": TENSOR}, bytes(9), "9 bytes of tensors, expected 8"),
]


@pytest.mark.parametrize(("header", "data", "words"), WRONG)
def test_a_file_that_breaks_a_rule_is_refused_in_a_sentence_that_names_it(
    tmp_path, header, data, words
):
    path = write(tmp_path / "x.safetensors", header, data)
    with pytest.raises(ValueError, match=words) as error:
        safetensors.read(path)
    assert str(error.value).startswith(f"{path} is not a whole safetensors file (")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 450


@pytest.mark.parametrize("length", [99, 2**27, 2**40, 2**62, 2**64 - 1])
def test_a_header_that_would_be_longer_than_the_file_is_not_read(tmp_path, length):
    path = write(tmp_path / "x.safetensors", {"a": TENSOR}, length=length)
    with pytest.raises(ValueError, match=f"its header would have {length:,} bytes"):
        checkpoints.read_checkpoint(path)


# Weights


def tiny():
    torch.manual_seed(0)
    return tresnet.tresnet_tiny()


def test_a_model_of_ours_that_a_person_converted_is_loaded(tmp_path):
    model = iml_gcn.Model(tiny(), torch.nn.Linear(512, 6))
    package().save_file(model.state_dict(), tmp_path / "ours.safetensors")
    torch.manual_seed(1)
    backbone = tresnet.tresnet_tiny()
    head = backbones.load_weights(backbone, tmp_path / "ours.safetensors")
    assert head.keys() == {"weight", "bias"}
    assert head["weight"].equal(model.head.weight)
    for name, tensor in model.backbone.state_dict().items():
        assert backbone.state_dict()[name].equal(tensor)
    loaded = backbones.load_released(
        "tresnet_tiny", "avg", tmp_path / "ours.safetensors", list("abcdef")
    )
    images = torch.rand(2, 3, 64, 64)
    assert loaded(images).equal(model.eval()(images))


@torch.inference_mode()
def test_timms_tresnet_m_in_a_file_of_the_package_has_timms_features(tmp_path, capsys):
    timm = pytest.importorskip("timm", exc_type=(ImportError, RuntimeError))
    torch.manual_seed(0)
    theirs = timm.create_model("tresnet_m", num_classes=7).eval()
    for tensor in theirs.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:  # else every block ends in zeros
            torch.nn.init.uniform_(tensor, 0.5, 1.5)
    path = tmp_path / "model.safetensors"
    package().save_file(theirs.state_dict(), path, metadata={"format": "pt"})
    backbone = tresnet.tresnet_m()
    head = backbones.load_weights(backbone, path)
    assert "loaded 372 of 372 " in capsys.readouterr().out  # and 60 counters, and the classifier
    assert head["weight"].equal(theirs.head.fc.weight)
    images = torch.rand(2, 3, 96, 128, dtype=torch.float64)
    maps = theirs.double().forward_features(images)
    expected = theirs.forward_head(maps, pre_logits=True)
    assert expected.std() > 0.1
    assert backbone.double().eval()(images).equal(expected)


# Files spoilt by chance


def mutate_header(rng, content):
    """The header changed as JSON, with a right length again."""
    length = int.from_bytes(content[:8], "little")
    header = mutate_json(rng, content[8 : 8 + length])
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def mutate_a_number(rng, content):
    """A digit of the header, or a bit of the length, is another."""
    content, length = bytearray(content), int.from_bytes(content[:8], "little")
    if rng.random() < 0.2:
        content[rng.integers(8)] ^= 1 << int(rng.integers(8))
        return bytes(content)
    for _ in range(rng.integers(1, 3)):
        digits = [i for i in range(8, 8 + length) if chr(content[i]).isdigit()]
        content[pick(rng, digits)] = ord(pick(rng, "0123456789"))
    return bytes(content)


def flip_a_bit(rng, content):
    content = bytearray(content)
    content[rng.integers(min(len(content), 20_000))] ^= 1 << int(rng.integers(8))
    return bytes(content)


WAYS = [mutate_header, mutate_a_number, flip_a_bit, mutate_bytes]


@pytest.mark.usefixtures("limits")
def test_fuzz(tmp_path, monkeypatch, request):
    package()
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    state = {f"module.{name}": tensor for name, tensor in tiny().state_dict().items()}
    small = {"a": torch.rand(2, 3), "b": torch.ones(4, dtype=torch.bool), "c": torch.zeros(0)}
    files = {name: tmp_path / f"{name}.safetensors" for name in ("weights", "small")}
    for name, tensors in (("weights", state), ("small", small)):
        package().save_file(tensors, files[name], metadata={"format": "pt"})
    originals = {path: path.read_bytes() for path in files.values()}

    def read(path):
        ours = safetensors.read(path)
        # Python takes -0 and halves of surrogate pairs as JSON, the package does not.
        if not any(odd in path.read_bytes() for odd in (b"-0", b"\\ud8", b"\\uD8")):
            assert_equal(ours, package().load_file(path))
        if path == files["weights"]:
            backbone = tresnet.tresnet_tiny()
            backbones.load_weights(backbone, path)
            names = {name: tensor.shape for name, tensor in tiny().state_dict().items()}
            assert {n: t.shape for n, t in backbone.state_dict().items()} == names

    only = request.config.getoption("--fuzz-case")
    cases = range(request.config.getoption("--fuzz") // 9) if only is None else [only]
    for case in cases:
        rng = np.random.default_rng((99, case))
        path, mutate = pick(rng, list(originals)), pick(rng, WAYS)
        path.write_bytes(mutate(rng, originals[path]))
        try:
            assert_read_or_refused(read, path)
        except BaseException:
            print(f"case {case}, {mutate.__name__}, is {path}; repeat it with --fuzz-case {case}")
            raise
        path.write_bytes(originals[path])
