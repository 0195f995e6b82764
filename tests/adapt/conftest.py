"""Two small surveys of simple shapes, for the adapt stage."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from skyshift.datasets.store import MapStore, ViewRecord

CLASSES = ("blob", "bar", "ring")
FACE_ON = tuple(np.eye(3).ravel().tolist())


def make_shapes(labels, seed, *, noise=0.0, blur=1.0, pixels=24):
    """(n, pixels, pixels) maps of blobs, bars and rings at random angles."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:pixels, :pixels] - (pixels - 1) / 2
    maps = []
    for label in labels:
        angle = generator.uniform(0, np.pi)
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        size = generator.uniform(2.5, 3.5)
        if label == 0:
            values = np.exp(-(along**2 + across**2) / (2 * (size * blur) ** 2))
        elif label == 1:
            values = np.exp(-(along**2) / (2 * (2 * size) ** 2) - across**2 / (2 * (0.5 * size * blur) ** 2))
        else:
            values = np.exp(-((np.hypot(x, y) - 2 * size) ** 2) / (2 * (0.5 * size * blur) ** 2))
        maps.append(values * generator.uniform(0.5, 2.0) + noise * generator.normal(size=values.shape))
    return np.array(maps, np.float32)


def make_store(path, domain, labels, maps, *, names=None, classes=CLASSES, unit="Jy"):
    """A store of one view an object."""
    names = names or [f"{Path(path).stem}-{i}" for i in range(len(labels))]
    domains = {domain: maps} if isinstance(domain, str) else dict.fromkeys(domain, maps)
    store = MapStore.create(
        path,
        units=dict.fromkeys(domains, unit),
        views=len(labels),
        pixels=maps.shape[-1],
        shard_views=len(labels),
        labels=classes,
    )
    records = [
        ViewRecord(i, i, name, i, 0, 0.0, FACE_ON, 1.0, 0.0, int(label), 0)
        for i, (name, label) in enumerate(zip(names, labels, strict=True))
    ]
    store.write_shard(0, domains, records)
    return Path(path)


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """Source and target stores: 150 clean shapes, and 120 others seen blurred and with noise."""
    folder = tmp_path_factory.mktemp("pair")
    source, target = np.arange(150) % 3, np.arange(120) % 3
    return (
        make_store(folder / "clean.zarr", "clean", source, make_shapes(source, 0)),
        make_store(folder / "sky.zarr", "sky", target, make_shapes(target, 1, noise=0.15, blur=1.4)),
    )


def make_configuration(path, pair, method, **changes):
    """A configuration file of a run on the two stores."""
    config = {
        "source": {"store": str(pair[0]), "domains": ["clean"], "scaling": {"clean": "linear"}},
        "target": {"store": str(pair[1]), "domains": ["sky"], "scaling": {"sky": "linear"}},
        "split": {"train": 0.6, "validation": 0.2, "test": 0.2, "seed": 0},
        "method": method,
        "training": {
            **{"steps": 6, "batch_size": 16, "learning_rate": 0.003, "precision": "no", "average": 0.5, "seed": 0},
            **{"betas": [0.9, 0.999], "validate_every": 3, "checkpoint_every": 3, "monitor": "source_loss", "keep": 99},
            **changes.pop("training", {}),
        },
        "output": str(Path(path).parent / "run"),
        "evaluation": False,
    }
    for key, value in changes.items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
    Path(path).write_text(yaml.safe_dump(config))
    return Path(path)


@pytest.fixture(scope="session")
def shapes():
    """Maps of simple shapes: :func:`make_shapes`."""
    return make_shapes


@pytest.fixture(scope="session")
def write_store():
    """Writes a store: :func:`make_store`."""
    return make_store


@pytest.fixture(scope="session")
def configure():
    """Writes the configuration of a run: :func:`make_configuration`."""
    return make_configuration
