"""A method of one's own is a class in a file of one's own, named in the configuration."""

import os
import subprocess
import sys
import textwrap

import numpy as np

from skyshift.datasets.formats import read_maps
from skyshift.datasets.store import MapStore

MINE = '''
"""Target as a learned multiple of the source."""

import torch
from torch import nn

from skyshift.translate.methods.base import TranslationMethod


class Multiple(TranslationMethod):
    players = averaged = ("factor",)
    needs_pairs = True

    def __init__(self, source_channels: int, target_channels: int, *, begin: float = 0.5):
        super().__init__(source_channels, target_channels)
        self.factor = nn.Conv2d(source_channels, target_channels, 1, bias=False)
        nn.init.constant_(self.factor.weight, begin)

    def loss(self, player, networks, batch, shared):
        return (networks[player](batch["source"]) - batch["target"]).abs().mean(), {}

    def translate(self, source, *, noise=None, calls=None):
        return self.finish(source, self.factor(source))
'''


def test_a_method_of_ones_own_trains_and_translates(tiny_store, tmp_path, repository):
    (tmp_path / "mine.py").write_text(textwrap.dedent(MINE))
    (tmp_path / "mine.yaml").write_text(
        f"data: {{store: {tiny_store}, build: ''}}\n"
        "method: {class_path: mine.Multiple, init_args: {begin: 0.25}}\n"
        "training: {steps: 3, batch_size: 2}\n"
        "evaluation: true\noutput: run\n"
    )

    def run(script, *arguments):
        return subprocess.run(
            [sys.executable, repository / "translate" / script, *map(str, arguments)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    trained = run("train.py", "--config", "mine.yaml")
    assert trained.returncode == 0, trained.stderr[-2000:]
    assert "| multiple |" in trained.stdout
    options = ("--checkpoint", "run", "--input", tiny_store, "--output", "hi.npy")
    refused = run("generate.py", *options)
    assert refused.returncode != 0
    assert "mine.Multiple, which is not part of skyshift" in refused.stderr
    assert not (tmp_path / "hi.npy").exists()
    made = run("generate.py", *options, "--trust_remote_code", "true")
    assert made.returncode == 0, made.stderr[-2000:]
    hi = read_maps(tmp_path / "hi.npy")["hi"]
    assert len(hi) == MapStore(tiny_store).views
    assert np.isfinite(hi.values).all()
