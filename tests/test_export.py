"""predict.py --export: files that other programs read back, with the checkpoint's scores.

Oracles: torch.export's and onnxruntime's own readers; the model on pixels made by hand.
"""

import ast
import importlib
import json
import re
import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import LABELS, ROOT, drawn_photo, predicted, scores_by_hand
from PIL import Image, ImageOps

import data
import iml_gcn
import tresnet
from reports import export


def reload_pt2(path):
    extra = {"metadata.json": ""}
    program = torch.export.load(path, extra_files=extra)
    return program.module(), json.loads(extra["metadata.json"])


def reload_onnx(path):
    import onnxruntime as runtime

    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    for key in ("classes", "image_size", "threshold"):
        metadata[key] = json.loads(metadata[key])

    def module(images):
        return torch.from_numpy(session.run(["scores"], {"images": images.numpy()})[0])

    return module, metadata


@pytest.mark.parametrize(
    ("name", "reload"), [("model.pt2", reload_pt2), ("model.onnx", reload_onnx)]
)
def test_an_exported_model_has_the_scores_of_the_checkpoint_and_says_what_it_needs(
    predictor, tmp_path, capsys, name, reload
):
    for package in ("onnx", "onnxscript", "onnxruntime") if name.endswith("onnx") else ():
        pytest.importorskip(package)
    path, model = predictor
    photos, target = [tmp_path / "a.png", tmp_path / "b.png"], tmp_path / "new" / name
    for seed, photo in enumerate(photos):
        drawn_photo(seed).save(photo)
    lines, _ = predicted(capsys, path, *photos, "--export", target, "--threshold", 0.7)
    worst, count = re.search(r"scores (\S+) on (\d) images", lines[-1]).groups()
    assert float(worst) < 1e-5
    assert count == "2"
    assert [file.name for file in target.parent.iterdir()] == [name]
    exported, metadata = reload(target)
    if name.endswith("onnx"):
        import onnx

        shape = onnx.load(target).graph.input[0].type.tensor_type.shape
        assert shape.dim[0].dim_param == "batch"
    about = metadata["classes"], metadata["image_size"], metadata["threshold"]
    assert about == (LABELS, 64, 0.7)
    assert "[0, 1]" in metadata["images"]
    for seeds in ([0], [1, 2, 3]):
        batch = [drawn_photo(seed).resize((64, 64), Image.Resampling.BILINEAR) for seed in seeds]
        images = torch.stack([torch.from_numpy(np.array(photo)) for photo in batch]) / 255
        expected = torch.tensor([scores_by_hand(model, drawn_photo(seed)) for seed in seeds])
        ours = exported(images.permute(0, 3, 1, 2).contiguous())  # (B, n)
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    assert str(tmp_path).encode() not in target.read_bytes()
    assert str(ROOT).encode() not in target.read_bytes()


# docs/export.md


def example(uses):
    """The page's example that uses this."""
    examples = re.findall("```python\n(.*?)```", (ROOT / "docs/export.md").read_text(), re.S)
    (text,) = [text for text in examples if uses in text]
    return text


@pytest.mark.parametrize(("name", "package"), [("model.onnx", "onnxruntime"), ("model.pt2", "")])
def test_the_pages_program_labels_a_photo_as_predict_does(
    predictor, tmp_path, capsys, monkeypatch, name, package
):
    for needed in ("onnx", "onnxscript", "onnxruntime") if package else ():
        pytest.importorskip(needed)
    exif = Image.Exif()
    exif[0x112] = 6
    drawn_photo(size=(200, 150)).save(tmp_path / "a.jpg", exif=exif)
    # with a calibration and a threshold of its own
    torch.save(torch.load(predictor[0]) | {"calibration": [0.5, 1.0]}, tmp_path / "model.pt")
    threshold = "--threshold", "0.6"
    predicted(capsys, tmp_path / "model.pt", "--export", tmp_path / name, *threshold)
    (line,), _ = predicted(capsys, tmp_path / "model.pt", tmp_path / "a.jpg", "--json", *threshold)
    expected = {item["label"]: item["score"] for item in json.loads(line)["labels"]}
    if package:
        monkeypatch.setitem(sys.modules, "torch", None)  # its import fails
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["use.py", "a.jpg"])
    exec(example(f'"{name}"'), {})
    ours = ast.literal_eval(capsys.readouterr().out)
    assert 0 < len(ours) < len(LABELS)
    assert ours == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("uses", ['"model.onnx"', '"model.pt2"'])
def test_the_pages_lines_make_the_pixels_of_predict(tmp_path, uses):
    lines = re.search(r"^photo = .*?^pixels = [^\n]*", example(uses), re.M | re.S)[0]
    noise = np.random.default_rng(0).integers(256, size=(20, 30, 4), dtype=np.uint8)
    clear, turned = Image.fromarray(noise), Image.Exif()
    turned[0x112] = 8
    grey = (noise[..., 0].astype(np.uint16) << 8) + noise[..., 1]
    photos = [(clear, {}), (clear.convert("LA"), {}), (clear.convert("RGB"), {"exif": turned})]
    photos += [(clear.quantize(16), {"transparency": 3}), (Image.fromarray(grey), {})]
    photos += [(clear.convert("CMYK"), {"format": "TIFF"}), (clear.convert("1"), {})]
    for image, options in photos:
        image.save(tmp_path / "photo", **{"format": "PNG"} | options)
        space = {"sys": types.SimpleNamespace(argv=["", tmp_path / "photo"]), "side": 16}
        exec(lines, space | {"np": np, "Image": Image, "ImageOps": ImageOps}, space)
        ours = np.asarray(data.read_image(tmp_path / "photo", 16, upright=True), np.float32) / 255
        assert np.array_equal(space["pixels"], ours), image.mode


@pytest.mark.parametrize("head", ["linear", "gcn"])
def test_the_pages_lines_give_timm_our_weights(tmp_path, monkeypatch, head):
    torch.manual_seed(0)
    heads = {"linear": torch.nn.Linear(2048, 3)}
    heads["gcn"] = iml_gcn.LabelGCN(torch.randn(3, 4), torch.eye(3), 2048)
    model, about = iml_gcn.Model(tresnet.tresnet_m(), heads[head]).eval(), {"pool": "avg"}
    about |= {"classes": list("abc"), "backbone": "tresnet_m", "state_dict": model.state_dict()}
    torch.save(about, tmp_path / "backbone.pt")
    monkeypatch.chdir(tmp_path)
    exec(example("timm.pth"), {})
    state = torch.load("timm.pth")
    assert state["head.fc.weight"].shape == (3, 2048)
    assert state["head.fc.bias"].shape == (3,)
    try:
        timm = importlib.import_module("timm")
    except (ImportError, RuntimeError):  # RuntimeError: torchvision of another torch
        pytest.skip("timm is not installed")
    theirs = timm.create_model("tresnet_m", num_classes=3, checkpoint_path="timm.pth").eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert theirs(images).equal(model(images))


@pytest.mark.parametrize("error", [2e-4, float("nan")])
def test_an_export_that_differs_is_an_error_and_leaves_the_file_before_as_it_was(
    predictor, tmp_path, capsys, monkeypatch, error
):
    def write(file, program, metadata):  # a runtime that is wrong by `error` for one label
        file.write_text("a model")
        offset = error * F.one_hot(torch.tensor(3), len(LABELS))
        return lambda images: predictor[1](images).sigmoid() + offset

    monkeypatch.setattr(export, "write_pt2", write)
    monkeypatch.setattr(torch.export, "export", lambda *args, **options: None)
    target = tmp_path / "model.pt2"
    target.write_text("before")
    _, errors = predicted(capsys, predictor[0], "--export", target, code=2)
    assert errors.startswith("error: scores of the exported model differ")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {target.name: "before"}
