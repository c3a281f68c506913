"""--tensorboard: what TensorBoard's own reader finds in the event files.

Oracles: the run's log and metrics.
"""

import json

import pytest
from conftest import argv, log_of

import run
from extras import tensorboard


def events(folder):
    """{tag: [(step, value), ...]} of the scalars, and TensorBoard's reader of all else."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), {"scalars": 0, "tensors": 0, "images": 0}).Reload()
    scalars = found.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in scalars}, found


def test_tensorboard_shows_the_logs_and_the_metrics_numbers_also_after_a_resume(
    demo, tmp_path, monkeypatch
):
    pytest.importorskip("tensorboard")
    epoch, options = tensorboard.Board.epoch, "--phase backbone eval --threshold 0.25 --tensorboard"

    def break_off(self, entry, speed):
        epoch(self, entry, speed)
        if entry["epoch"] == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tensorboard.Board, "epoch", break_off)
        with pytest.raises(KeyboardInterrupt):
            run.main(argv(demo, tmp_path, options))
    assert run.main(argv(demo, tmp_path, options)) == 0  # does the end of epoch 2 again
    log = log_of(tmp_path)
    scalars, found = events(tmp_path / "tensorboard" / "backbone")
    for tag, key in [("train/loss", "loss"), ("train/lr", "lr"), ("val/mAP", "mAP")]:
        assert [step for step, _ in scalars[tag]] == [1, 2]
        assert [v for _, v in scalars[tag]] == pytest.approx([entry[key] for entry in log])
    assert [step for step, _ in scalars["train/images per second"]] == [1]  # 2 had none left
    report = json.loads((tmp_path / "metrics-backbone.json").read_text())
    for p in ("0.25", "0.5", "0.8"):
        last = {key: scalars[f"val at p over {p}/{key}"][-1] for key in report["thresholds"][p]}
        assert last == {k: (2, pytest.approx(v)) for k, v in report["thresholds"][p].items()}
    assert [event.step for event in found.Tensors("PR of all labels")] == [1, 2]
    assert run.main(argv(demo, tmp_path, options, "--epochs 1 --fresh")) == 0
    scalars, _ = events(tmp_path / "tensorboard" / "backbone")
    assert [step for step, _ in scalars["train/loss"]] == [1]
