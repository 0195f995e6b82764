"""Runs of DANN, ADDA, self-ensembling and AdaMatch: better than the source alone, exact resume, two processes as one."""

import json
import math
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file

# Two moons, of which the target's are turned by 30°. A map is a point: two channels of one pixel.
TOY = """
    import math
    import torch
    from accelerate.utils import set_seed
    from torch import nn
    from skyshift.adapt.classifier import Encoder
    from skyshift.adapt.methods.adamatch import AdaMatch
    from skyshift.adapt.methods.adda import ADDA
    from skyshift.adapt.methods.dann import DANN
    from skyshift.adapt.methods.self_ensembling import SelfEnsembling
    from skyshift.adapt.methods.source_only import SourceOnly
    from skyshift.adapt.task import Task
    from skyshift.engine import Trainer, TrainingConfig

    TASK = Task("classification", ("upper", "lower"), ("upper", "lower"))

    class Points(Encoder):
        def __init__(self, channels):
            super().__init__()
            self.width = 32
            self.layers = nn.Sequential(nn.Linear(channels, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())

        def forward(self, maps, domain=0):
            return self.layers(maps.flatten(1))

    def moons(n, degrees, g):
        label, t = torch.randint(0, 2, (n,), generator=g), math.pi * torch.rand(n, generator=g)
        sign = 1.0 - 2.0 * label
        points = torch.stack([sign * t.cos() + label - 0.5, sign * t.sin() + 0.5 * label - 0.25], 1)
        points = points + 0.1 * torch.randn(n, 2, generator=g)
        a = math.radians(degrees)
        turn = torch.tensor([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]])
        return (points @ turn)[:, :, None, None], label

    def views(number, n):
        g = torch.Generator().manual_seed(number)
        (source, label), (target, _) = moons(n, 0, g), moons(n, TURNED, g)

        def moved(maps, width):
            return maps + width * torch.randn(maps.shape, generator=g)

        return {
            "source": moved(source, 0.05), "source_strong": moved(source, STRONG), "source_label": label,
            "target": moved(target, 0.05), "target_strong": moved(target, STRONG),
        }

    TURNED, STRONG = 30, 0.2

    def trainer(kind, folder, n, steps, resume=False, loader=None, rate=5e-3, training={}, **options):
        set_seed(0)
        method = kind(2, TASK, encoder=Points, **options)
        method.steps = steps
        config = TrainingConfig(
            **{"steps": steps, "batch_size": n, "learning_rate": rate, "schedule": "constant", "betas": (0.9, 0.999),
               "average": 0.9, "precision": "no", "checkpoint_every": steps, "log_every": steps, **training})

        def whole(plan):  # a process's share of numbered batches
            for number in range(plan.first, plan.last):
                full = views(number, n * plan.processes)
                yield {k: v[plan.process * n : (plan.process + 1) * n] for k, v in full.items()}

        return Trainer(method, loader or whole, config, folder, resume=resume)
"""
