"""One network between any domains: its samples, what it is told, and a chosen direction as a translator."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from skyshift.checkpoint import CheckpointError
from skyshift.command import shipped_config
from skyshift.datasets.loading import Draw
from skyshift.datasets.maps import Maps
from skyshift.datasets.store import MapStore
from skyshift.errors import SkyshiftError
from skyshift.translate.any_to_any import direction, planes
from skyshift.translate.data import DataConfig, TranslationData
from skyshift.translate.evaluate import Options, evaluate
from skyshift.translate.networks.domain_unet import DomainUNet
from skyshift.translate.share import main as share
from skyshift.translate.translation import Translation
from skyshift.translate.translator import Translator, store_maps

DOMAINS = ["gas", "dm", "stars", "hi"]


@pytest.fixture(scope="module")
def data(tiny_store) -> TranslationData:
    config = DataConfig(store=str(tiny_store), domains=DOMAINS)
    return TranslationData(config, config.open())


@pytest.fixture(scope="module")
def run(tiny_store, repository, tmp_path_factory) -> Path:
    """Two steps by the command, in a process of its own, without the evaluation of its end."""
    output = tmp_path_factory.mktemp("any") / "run"
    options = {
        "data.store": tiny_store,
        "data.build": "",
        "training.steps": 2,
        "training.batch_size": 2,
        "training.sample_every": 2,
        "method.init_args.generator.init_args.width": 4,
        "evaluation": "false",
        "output": output,
    }
    command = [sys.executable, str(repository / "translate" / "train.py")]
    command += ["--config", str(repository / "configs" / "translate" / "any_to_any.yaml")]
    command += [f"--{name}={value}" for name, value in options.items()]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return output


def test_all_directions_are_drawn_alike():
    """Of 3 domains there are 3 targets with 3 source sets each; χ² of 9 equal classes exceeds 26 once in 1000."""
    drawn = Counter()
    for number in range(900):
        given, wanted = direction((0, 1, number), 3)
        assert given
        assert wanted not in given
        drawn[tuple(given), wanted] += 1
    assert len(drawn) == 9
    assert sum((count - 100) ** 2 / 100 for count in drawn.values()) < 26


def test_a_sample_says_what_it_holds_and_wants(data):
    """The planes are read back and the maps compared with those of the store, scaled by hand."""
    dataset = data.dataset("train")
    view = int(data.views["train"][3])
    for number in range(6):
        sample = dataset[Draw(view, (5, number))]
        maps, present, wanted = sample["source"].split(4)
        assert sample["target"].shape == (1, 32, 32)
        target = int(wanted[:, 0, 0].argmax())
        assert (wanted == torch.eye(4)[target][:, None, None]).all()
        assert not present[target].any()
        assert present.any()
        for i, name in enumerate(DOMAINS):
            true = data.scalings[name].forward(data.store.maps(name, [view])[0]).astype(np.float32)
            assert (present[i] == present[i, 0, 0]).all()
            np.testing.assert_array_equal(maps[i], true if present[i, 0, 0] else 0 * true)
            if i == target:
                np.testing.assert_array_equal(sample["target"][0], true)


def test_samples_depend_on_their_seed_alone(data):
    dataset = data.dataset("train", augment=True)
    draws = [Draw(int(view), (0, 1, i)) for i, view in enumerate(data.views["train"][:4])]
    together = dataset.__getitems__(draws)
    for draw, sample in zip(reversed(draws), reversed(together), strict=True):
        alone = dataset[draw]
        assert (alone["source"] == sample["source"]).all()
        assert (alone["target"] == sample["target"]).all()


def test_the_network_listens_to_its_planes():
    """At the start FiLM does nothing: the output depends on the maps alone. With weights it depends on each plane."""
    torch.manual_seed(0)
    network = DomainUNet(9, 1, width=4, depth=2, embedding=8).eval()
    maps = torch.randn(2, 2, 19, 17)

    def made(present, wanted):
        return network(planes(maps, present, wanted, 3))

    assert made([0, 1], 2).shape == (2, 1, 19, 17)
    torch.testing.assert_close(made([0, 1], 2), made([0, 1], 1))
    for film in [*network.encoder_films, *network.decoder_films]:
        torch.nn.init.normal_(film.linear.weight)
    assert not torch.allclose(made([0, 1], 2), made([0, 1], 1))
    one = planes(maps[:, :1], [0], 2, 3)
    two = one.clone()
    two[:, 4] = 1  # the same maps, but the empty one is said to be there
    assert not torch.allclose(network(one), network(two))


def test_planes_that_are_not_three_a_domain_are_refused():
    with pytest.raises(SkyshiftError, match=r"takes 3 planes a domain, not 4 channels; set data\.domains"):
        DomainUNet(4, 1)


def test_a_chosen_direction_is_an_ordinary_translator(run, tiny_store):
    store = MapStore(tiny_store)
    views = [0, 3]
    one = Translator.from_pretrained(run, source=["stars", "gas"], target=["dm", "hi"], device="cpu")
    assert (one.source, one.target) == (("stars", "gas"), ("dm", "hi"))
    made = one(store, views)
    assert {name: maps.unit for name, maps in made.items()} == {"dm": "Msun / kpc2", "hi": "Msun / kpc2"}
    # the same by hand: the order of the sources is nothing to the network, and each target is translated alone
    scaling = {channel.domain: channel.scaling for channel in one.translation.domains}
    given = torch.zeros(2, 12, 32, 32)
    for name in ("gas", "stars"):
        number = DOMAINS.index(name)
        given[:, number] = torch.from_numpy(scaling[name].forward(store.maps(name, views)).astype(np.float32))
        given[:, 4 + number] = 1
    given[:, 8 + DOMAINS.index("hi")] = 1
    with torch.no_grad():
        scaled = one.method.generator(given)[:, 0].double().numpy()
    by_hand = np.maximum(scaling["hi"].inverse(scaled), 0).astype(np.float32)
    np.testing.assert_array_equal(made["hi"].values, by_hand)
    alone = Translator.from_pretrained(run, source=["gas", "stars"], target=["hi"], device="cpu")
    np.testing.assert_array_equal(alone(_maps(store, views))["hi"].values, by_hand)


def _maps(store, views):
    return store_maps(store, ["hi", "stars", "gas"], views)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({}, "between any of gas, dm, stars, hi; choose: source="),
        ({"source": ["gas"]}, "between any of gas, dm, stars, hi; choose: source="),
        ({"source": ["gass"], "target": ["hi"]}, "source: unknown domain 'gass'. Did you mean 'gas'"),
        ({"source": ["gas"], "target": ["bfield"]}, "target: unknown domain 'bfield'.*knows gas, dm, stars, hi"),
        ({"source": ["gas", "hi"], "target": ["hi"]}, "hi is both source and target"),
        ({"source": ["gas", "gas"], "target": ["hi"]}, "a domain is named twice in gas, gas"),
    ],
)
def test_a_direction_that_cannot_be_is_refused(run, choice, message):
    with pytest.raises(CheckpointError, match=message):
        Translator.from_pretrained(run, device="cpu", **choice)


def test_its_card_shows_how_to_choose_a_direction(run, tmp_path):
    """The example of the card is run as it stands, on maps of the domains that it names."""
    share(["--checkpoint", str(run), "--output", str(tmp_path / "given")])
    example = (tmp_path / "given" / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    translation = Translation.read(tmp_path / "given")
    names = [channel.domain for channel in translation.source]
    maps = {f"maps_of_{name}": Maps(np.ones((1, 32, 32), np.float32), name, "Msun / kpc2") for name in names}
    exec(example.replace("path/to/this/folder", str(tmp_path / "given")), maps)
    assert maps["maps"].domain == translation.target[0].domain


def test_absent_maps_are_named(run, tiny_store):
    one = Translator.from_pretrained(run, source=["gas", "dm"], target=["hi"], device="cpu")
    maps = {"gas": _maps(MapStore(tiny_store), [0])["gas"]}
    with pytest.raises(SkyshiftError, match="translates gas, dm to hi, the maps given are of gas; 'dm' is not among"):
        one(maps)


def test_every_direction_is_evaluated_like_any_other(run):
    found = evaluate(run, source=["stars"], target=["dm"], options=Options(metrics=["psnr"], resamples=2))
    assert "stars → dm" in found.title
    with pytest.raises(CheckpointError, match="choose: source="):
        evaluate(run)


def test_a_checkpoint_keeps_its_domains(run, data):
    kept = Translation.read(sorted((run / "checkpoints").iterdir())[-1])
    assert [channel.domain for channel in kept.domains] == DOMAINS
    assert kept.domains == data.translation.domains


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"domains": ["gas"]}, "at least two domains, each once"),
        ({"domains": ["gas", "hi", "gas"]}, "at least two domains, each once"),
        ({"domains": DOMAINS, "paired": False}, "learns from maps of the same view"),
        ({"domains": DOMAINS, "target": ["bfield"]}, "target: unknown domain 'bfield'"),
        ({"domains": DOMAINS, "scaling": {"bfield": "log"}}, "data.scaling: unknown domain 'bfield'"),
    ],
)
def test_domains_that_cannot_be_trained_are_refused(options, message):
    with pytest.raises(SkyshiftError, match=message):
        DataConfig(**options)


def test_domains_without_the_default_pair_have_a_direction_of_their_own():
    config = DataConfig(domains=["dm", "stars"])
    assert (config.source, config.target, config.channels) == (["dm"], ["stars"], (6, 1))


def test_the_shipped_configuration_fits_its_domains():
    plain = yaml.safe_load(shipped_config("translate/any_to_any.yaml").read_text())
    assert plain["data"]["domains"] == DOMAINS
