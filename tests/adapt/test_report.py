"""A report says what was chosen how, measures the target alone with its labels, and appears whole."""

import csv
import dataclasses
import json

import matplotlib.image
import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics as sk

from skyshift.adapt.report import Report
from skyshift.adapt.report_scores import Checkpoint, Part, ReportError
from skyshift.adapt.task import Task

OPEN = Task("classification", ("spiral", "elliptical", "merger"), ("spiral", "elliptical", "lens"))
NUMBERS = Task("regression", mean=10.0, scale=2.0)


def part(n, strength, seed, *, labels=None, unknown_share=0.2, views=2):
    """Objects of three known classes and an unknown one in two views each; logits are right by ``strength``."""
    r = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n // views), views)
    truth = np.where(r.random(n // views) < unknown_share, 3, r.integers(3, size=n // views))[groups]
    noise = np.random.default_rng([seed, int(100 * strength)])
    logits = strength * np.eye(4)[truth][:, :3] + noise.normal(size=(n, 3))
    p = softmax(logits, axis=1)
    score = -(p * np.log(p)).sum(1)
    features = logits @ noise.normal(size=(3, 6)) + 0.1 * noise.normal(size=(n, 6))
    names = [f"J{g:04d}-{i}" for i, g in enumerate(groups)]
    return Part(names, groups, truth if labels is None else np.full(n, labels), logits, score, features)


def checkpoint(choice, strength, **options):
    source, validation = (part(80, strength + 2, seed, unknown_share=0.0) for seed in (1, 2))
    monitor = {"validator": "snd", "last": "", "oracle": "accuracy"}[choice]
    target = part(120, strength, 3, **options)
    return Checkpoint(choice, 100, validation, source, target, monitor, {"snd": 1.25, "entropy": 0.5})


@pytest.fixture(scope="module")
def report():
    bounds = {
        "source-only": part(120, 1.0, 3),
        "target-supervised": part(120, 6.0, 3),
    }
    validations = {"target-supervised": part(80, 6.0, 2, unknown_share=0.0)}
    checkpoints = [checkpoint("validator", 2.0), checkpoint("last", 1.5), checkpoint("oracle", 2.5)]
    return Report("toy", OPEN, checkpoints, bounds, notes=("of toys",), resamples=200, bound_validations=validations)


def test_numbers_are_those_of_scikit_learn(report):
    target = report.checkpoints[0].target
    known = target.labels < 3
    found = report.target["validator-chosen"]
    said = target.logits[known].argmax(1)
    assert found["accuracy"].value == pytest.approx(sk.accuracy_score(target.labels[known], said), rel=1e-12)
    assert found["macro_f1"].value == pytest.approx(sk.f1_score(target.labels[known], said, average="macro"), rel=1e-12)
    expected = sk.roc_auc_score(target.labels == 3, target.unknown)
    assert found["anomaly_auroc"].value == pytest.approx(expected, rel=1e-12)
    low, high = found["accuracy"].interval
    assert low < found["accuracy"].value < high


def test_the_gap_and_the_gain_are_of_the_same_samples(report):
    low, found, high = (report.target[n]["accuracy"] for n in ("source-only", "validator-chosen", "target-supervised"))
    gap = report.gaps["validator-chosen"]["accuracy"]
    assert gap.value == pytest.approx((found.value - low.value) / (high.value - low.value), rel=1e-12)
    np.testing.assert_allclose(
        gap.samples, (found.samples - low.samples) / (high.samples - low.samples), rtol=1e-12
    )  # target-supervised is better in every sample here
    assert 0 < gap.interval[0] < gap.value < gap.interval[1] < 1.2


def test_thresholds_come_from_the_source(report):
    """The threshold leaves 95 % of source validation maps known, whatever the target's labels are."""
    c = report.checkpoints[0]
    setting = report.settings[c.title]
    assert setting.threshold == np.quantile(c.source_validation.unknown, 0.95)
    unlabelled = dataclasses.replace(c, target=dataclasses.replace(c.target, labels=np.full(120, -1)))
    assert Report("toy", OPEN, [unlabelled]).settings == {c.title: setting}
    # A bound without validation maps of its own has no such numbers; one with them has.
    assert "h_score" not in report.target["source-only"]
    assert "h_score" in report.target["target-supervised"]
    assert "h_score" not in report.gaps[c.title]


def test_it_says_who_used_target_labels(report):
    text = report.table()
    assert "| validator-chosen | 100 | chosen by snd, without target labels |" in text
    assert "| last | 100 | the end of the run, nothing was chosen |" in text
    assert "| oracle † | 100 | chosen WITH target labels (accuracy): a bound, not a result |" in text
    assert "| target-supervised † |  | upper bound: trained WITH target labels |" in text
    assert "| metric | validator-chosen | last | oracle † | source-only | target-supervised † |" in text
    facts = report.facts()["checkpoints"]
    assert {name: c["used_target_labels"] for name, c in facts.items()} == {
        "validator-chosen": False, "last": False, "oracle": True
    }  # fmt: skip
    assert "of toys" in text


def test_files(report, tmp_path):
    report.write(tmp_path / "report", embeddings=("isomap",))
    folder = tmp_path / "report"
    expected = [
        "confusion.png",
        "curves.png",
        "latent_isomap.png",
        "metrics.json",
        "predictions.csv",
        "reliability.png",
    ]
    assert sorted(path.name for path in folder.iterdir()) == [*expected, "table.md"]
    facts = json.loads((folder / "metrics.json").read_text())
    found = facts["checkpoints"]["validator-chosen"]["target"]["accuracy"]
    assert found["value"] == report.target["validator-chosen"]["accuracy"].value
    assert facts["regime"] == "open-partial"
    rows = list(csv.DictReader((folder / "predictions.csv").open()))
    assert len(rows) == 3 * (80 + 120)
    mine = [row for row in rows if row["checkpoint"] == "last" and row["domain"] == "target"]
    target = report.checkpoints[1].target
    assert [row["name"] for row in mine] == target.names
    p = softmax(target.logits, axis=1)
    # Six digits are written.
    np.testing.assert_allclose([float(row["p merger"]) for row in mine], p[:, 2], rtol=1e-5)
    assert {row["label"] for row in mine} == {"spiral", "elliptical", "merger", "unknown"}
    limit = report.settings["last"].threshold
    assert [int(row["called_unknown"]) for row in mine] == (target.unknown > limit).astype(int).tolist()
    for path in folder.glob("*.png"):
        image = matplotlib.image.imread(path)[..., :3]
        assert image.std() > 0.05, path.name  # something is drawn


def test_a_target_without_labels(tmp_path):
    unlabelled = Report("toy", OPEN, [checkpoint("last", 2.0, labels=-1)], resamples=20)
    text = unlabelled.table()
    assert "120 test maps of 60 objects, 0 with a label: nothing to measure here" in text
    assert "proxy A-distance" in text
    unlabelled.write(tmp_path, embeddings=("isomap",))
    facts = json.loads((tmp_path / "metrics.json").read_text())
    assert facts["checkpoints"]["last"]["target"]["accuracy"] == {"value": None, "low": None, "high": None}
    assert facts["checkpoints"]["last"]["source"]["accuracy"]["value"] > 0.9
    assert not (tmp_path / "confusion.png").exists()


def test_numbers_in_their_own_unit(tmp_path):
    def numbers(n, noise, seed):
        r = np.random.default_rng(seed)
        y = 10.0 + 2.0 * r.normal(size=n)
        outputs = np.stack([(y - 10) / 2 + noise * r.normal(size=n), np.full(n, 2 * np.log(noise))], axis=1)
        return Part([str(i) for i in range(n)], np.arange(n), y, outputs, np.zeros(n), r.normal(size=(n, 3)))

    target = numbers(2000, 0.25, 1)
    c = Checkpoint("validator", 5, numbers(30, 0.25, 2), numbers(30, 0.25, 3), target, "dev")
    bounds = {"source-only": dataclasses.replace(target, logits=target.logits + np.array([0.5, 0.0])),
              "target-supervised": target}  # fmt: skip
    found = Report("toy", NUMBERS, [c], bounds, resamples=100)
    # .25 of a scale of 2; standard errors of 2,000 residuals 1.6 %, and of shares 1 % and .5 %.
    assert found.target[c.title]["rmse"].value == pytest.approx(0.5, rel=0.06)
    assert found.target[c.title]["coverage_68"].value == pytest.approx(0.68, abs=0.04)
    assert found.target[c.title]["coverage_95"].value == pytest.approx(0.95, abs=0.02)
    assert found.target["source-only"]["bias"].value == pytest.approx(1.0, abs=0.05)
    assert found.gaps[c.title]["rmse"].value == 1.0
    found.write(tmp_path, embeddings=("isomap",))
    row = next(csv.DictReader((tmp_path / "predictions.csv").open()))
    assert float(row["sigma"]) == pytest.approx(0.5, rel=1e-6)
    assert (tmp_path / "numbers.png").exists()
    assert "RMSE" in (tmp_path / "table.md").read_text()


def test_what_does_not_fit_is_refused():
    c = checkpoint("last", 2.0)
    with pytest.raises(ReportError, match="other target maps"):
        Report("toy", OPEN, [c], {"source-only": part(120, 1.0, 4)})
    with pytest.raises(ReportError, match="one checkpoint of each choice"):
        Report("toy", OPEN, [c, c])
    with pytest.raises(ReportError, match="Did you mean 'oracle'"):
        dataclasses.replace(c, choice="oracel")
    with pytest.raises(ReportError, match="bounds are source-only and target-supervised"):
        Report("toy", OPEN, [c], {"best": c.target})
    with pytest.raises(ReportError, match="there are 3 outputs, the task has 2"):
        Report("toy", Task("classification", ("a", "b"), ("a", "b")), [c])
    with pytest.raises(ReportError, match="labels run from"):
        Report("toy", OPEN, [checkpoint("last", 2.0, labels=4)])
    with pytest.raises(ReportError, match="not of the same maps"):
        dataclasses.replace(c.target, names=["one"])
    lost = c.target.logits.copy()
    lost[0] = np.nan
    with pytest.raises(ReportError, match="has diverged, or maps hold NaN"):
        dataclasses.replace(c.target, logits=lost)
    without = dataclasses.replace(c, source_validation=dataclasses.replace(c.source_validation, labels=np.full(80, -1)))
    with pytest.raises(ReportError, match="no labelled map to fit a temperature"):
        Report("toy", OPEN, [without]).table()
