"""Batches that happen to hold one class alone: every method gives a loss and gradients that are finite."""

import pytest
import torch

from skyshift.adapt.encoders import SmallCNN
from skyshift.adapt.methods.adamatch import AdaMatch
from skyshift.adapt.methods.adda import ADDA
from skyshift.adapt.methods.dance import DANCE
from skyshift.adapt.methods.dann import DANN
from skyshift.adapt.methods.mmd import MMD
from skyshift.adapt.methods.self_ensembling import SelfEnsembling
from skyshift.adapt.methods.source_only import SourceOnly
from skyshift.adapt.methods.universal import Universal
from skyshift.adapt.task import Task

TASK = Task("classification", ("disc", "spheroid", "merger"), ("disc", "spheroid", "merger"))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (SourceOnly, {}),
        (MMD, {}),
        (MMD, {"distance": "merger", "fisher": 0.01, "entropy": 0.05}),
        (MMD, {"distance": "coral"}),
        (DANN, {}),
        (DANN, {"conditional": True}),
        (ADDA, {}),
        (SelfEnsembling, {}),
        (AdaMatch, {}),
        (Universal, {}),
        (DANCE, {}),
    ],
)
def test_a_batch_of_one_class_has_finite_losses_and_gradients(method, options):
    torch.manual_seed(0)
    made = method(1, TASK, encoder=lambda channels: SmallCNN(channels, 4, 2), **options)
    made.steps = 10
    made.prepare(torch.arange(20))
    made.train()
    maps = {name: torch.randn(8, 1, 12, 12) for name in ("source", "target", "source_strong", "target_strong")}
    batch = {
        **maps,
        "source_label": torch.full((8,), 2),
        "target_view": torch.arange(8),
        "source_view": torch.arange(8),
    }
    networks = {player: getattr(made, player) for player in made.players}
    for step in (0, 6):
        made.step = step
        shared = made.share(networks, batch)
        for player in made.players:
            loss, _ = made.loss(player, networks, batch, shared)
            assert torch.isfinite(loss)
            if loss.requires_grad:
                loss.backward(retain_graph=True)
        for parameter in made.parameters():
            assert parameter.grad is None or torch.isfinite(parameter.grad).all()
