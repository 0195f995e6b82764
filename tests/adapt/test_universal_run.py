"""Universal adaptation and DANCE by the command: an open task, and what a checkpoint holds."""

import csv

import pytest
from safetensors.torch import load_file

from skyshift.adapt.train import main
from skyshift.checkpoint import latest

ENCODER = {"class_path": "skyshift.adapt.encoders.SmallCNN", "init_args": {"width": 4, "depth": 2, "domain_norm": True}}


@pytest.mark.slow
@pytest.mark.parametrize("path", ["universal.Universal", "dance.DANCE"])
def test_an_open_task_is_trained_and_its_unknown_maps_are_ranked(path, pair, configure, tmp_path):
    method = {"class_path": f"skyshift.adapt.methods.{path}", "init_args": {"encoder": ENCODER}}
    task = {"source": ["blob", "bar"], "target": ["blob", "bar", "ring"], "regime": "open"}
    config = configure(tmp_path / "run.yaml", pair, method, task=task, evaluation=True)
    main(["--config", str(config)])
    saved = load_file(latest(tmp_path / "run") / "model.safetensors")
    views = saved["bank.views"]
    assert len(views) == 72  # the training part: 0.6 of 120, known or not
    assert bool((views[1:] > views[:-1]).all())
    assert 0 < int(saved["bank.filled"].sum()) <= 72
    (table,) = (tmp_path / "run").rglob("anomalies.csv")
    with open(table, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    scores = [float(row["unknown"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert len({row["name"] for row in rows}) == len(rows) > 0
