"""--tensorboard: what TensorBoard's own reader finds in the event files. Oracle: the run's log."""

import pytest
from conftest import argv, log_of

import run
from extras import tensorboard


def curves(folder):
    """{tag: [(step, value), ...]}."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    tags = found.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in tags}


def test_tensorboard_shows_the_logs_numbers_also_after_a_resume(demo, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    epoch, options = tensorboard.Board.epoch, "--phase backbone eval --tensorboard"

    def break_off(self, entry, speed):
        epoch(self, entry, speed)
        if entry["epoch"] == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tensorboard.Board, "epoch", break_off)
        with pytest.raises(KeyboardInterrupt):
            run.main(argv(demo, tmp_path, options))
    assert run.main(argv(demo, tmp_path, options)) == 0  # does the end of epoch 2 again
    found, log = curves(tmp_path / "tensorboard" / "backbone"), log_of(tmp_path)
    for key in ("loss", "lr", "mAP"):
        assert found[key] == [(e["epoch"], pytest.approx(e[key])) for e in log]
    assert [step for step, _ in found["images per second"]] == [1]  # 2 had none left
    assert run.main(argv(demo, tmp_path, options, "--epochs 1 --fresh")) == 0
    assert [step for step, _ in curves(tmp_path / "tensorboard" / "backbone")["loss"]] == [1]
