"""Inference: a checkpoint takes physical maps and gives physical maps, with nothing else to know."""

import json
import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import yaml
from accelerate.state import AcceleratorState

from skyshift.checkpoint import CheckpointError
from skyshift.datasets.loading import Split, split_views
from skyshift.datasets.maps import MapError, Maps
from skyshift.datasets.scaling import Asinh
from skyshift.datasets.store import MapStore, StoreError
from skyshift.translate.train import main as train_command
from skyshift.translate.translation import HEADROOM, Channel, Translation
from skyshift.translate.translator import Translator, store_maps

UNIT = "Msun / kpc2"


def config_of(path, store, source, target, **training):
    networks = "skyshift.translate.networks"
    config = {
        "data": {
            "store": str(store),
            "source": source,
            "target": target,
            "split": {"train": 0.5, "validation": 0.2, "test": 0.3, "seed": 0},
        },
        "method": {
            "class_path": "skyshift.translate.methods.pix2pix.Pix2Pix",
            "init_args": {
                "generator": {
                    "class_path": f"{networks}.unet.UNet",
                    "init_args": {"width": 8, "depth": 2, "norm": "group"},
                },
                "discriminator": {
                    "class_path": f"{networks}.patchgan.PatchGAN",
                    "init_args": {"width": 4, "layers": 2, "norm": "none"},
                },
            },
        },
        "training": {
            **{"steps": 40, "batch_size": 4, "precision": "no", "learning_rate": 0.001, "average": 0.9},
            **training,
        },
        "evaluation": False,
    }
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def run(tiny_store, tmp_path_factory, repository):
    """A run of the real command."""
    folder = tmp_path_factory.mktemp("translator")
    config = config_of(folder / "run.yaml", tiny_store, ["gas"], ["hi"], checkpoint_every=20)
    command = [sys.executable, repository / "translate" / "train.py", "--config", config, "--output", folder / "run"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1"}
    subprocess.run(command, check=True, env=environment, cwd=folder, capture_output=True)
    return folder / "run"


@pytest.fixture(scope="module")
def two_to_two(tiny_store, tmp_path_factory):
    """From gas and stars to HI and temperature."""
    folder = tmp_path_factory.mktemp("two")
    AcceleratorState._reset_state(reset_partial_state=True)
    config = config_of(folder / "run.yaml", tiny_store, ["gas", "stars"], ["hi", "temperature"])
    train_command(["--config", str(config), "--output", str(folder / "run"), "--training.steps", "1"])
    return folder / "run"


@pytest.fixture
def checkpoint(run, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(run / "checkpoints" / "step_0000040", tmp_path / "checkpoint")


@pytest.fixture(scope="module")
def translator(run):
    return Translator.from_pretrained(run)


@pytest.fixture(scope="module")
def store(tiny_store):
    return MapStore(tiny_store)


@pytest.fixture(scope="module")
def gas(store):
    return store_maps(store, ["gas"], [2, 3, 8])["gas"]


# --- loading


def test_a_run_is_its_last_checkpoint(run, translator, gas):
    wanted = translator(gas)["hi"].values
    for folder in (run / "checkpoints" / "step_0000040", str(run)):
        np.testing.assert_array_equal(Translator.from_pretrained(folder)(gas)["hi"].values, wanted)
    earlier = Translator.from_pretrained(run / "checkpoints" / "step_0000020")(gas)["hi"].values
    assert np.abs(earlier - wanted).max() > 0
    assert (translator.source, translator.target) == (("gas",), ("hi",))


def test_averaged_weights_are_taken_unless_told_otherwise(run, gas, translator):
    plain = Translator.from_pretrained(run, averaged=False)(gas)["hi"].values
    assert np.abs(plain - translator(gas)["hi"].values).max() > 0


def test_a_checkpoint_says_what_it_was_trained_on(run, tiny_store):
    said = Translation.read(run / "checkpoints" / "step_0000040")
    assert said.provenance["store"] == str(tiny_store)
    assert said.provenance["split"] == {"train": 0.5, "validation": 0.2, "test": 0.3, "seed": 0, "by": "order"}
    assert said.provenance["pixels"] == 32
    assert said.provenance["seed"] == 0
    assert len(said.provenance["fingerprint"]) == 64
    assert said.source[0].unit == said.target[0].unit == UNIT


# --- maps in, maps out


def test_what_belongs_to_a_map_is_carried_over(translator, gas):
    named = Maps(gas.values, "gas", UNIT, gas.side, ("a", "b", "c"), {"OBJECT": "NGC 1", "CRVAL1": 12.5}, "a telescope")
    hi = translator(named)["hi"]
    assert hi.values.dtype == np.float32
    assert hi.values.shape == gas.values.shape
    assert (hi.domain, hi.unit, hi.names, hi.header) == ("hi", UNIT, named.names, named.header)
    np.testing.assert_array_equal(hi.side, gas.side)
    assert hi.provenance == "translated from gas (a telescope)"
    assert np.isfinite(hi.values).all()
    assert hi.values.min() >= 0
    assert hi.values.max() > 0
    assert len(np.unique(hi.values)) > 256  # not of eight bits
    assert gas.unit == UNIT  # what was given is as it was


def test_store_maps_mapping_and_array_give_the_same(translator, store, gas):
    wanted = translator(store, [2, 3, 8])["hi"]
    for given in (gas, {"gas": gas}, {"stars": gas, "gas": gas}, gas.values, gas.values.astype(np.float64)):
        np.testing.assert_array_equal(translator(given)["hi"].values, wanted.values)
    # Another number of maps is summed in another order.
    close = {"rtol": 1e-3, "atol": 1e-4 * wanted.values.max()}
    np.testing.assert_allclose(translator(gas.values[1])["hi"].values, wanted.values[1:2], **close)
    everything = translator(store)["hi"]
    np.testing.assert_allclose(everything.values[[2, 3, 8]], wanted.values, **close)
    assert everything.names[8] == "subhalo 4 view 8"
    np.testing.assert_array_equal(everything.side, np.asarray(store.catalogue()["side"]))


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_size_of_a_batch_does_not_matter(run, translator, store, batch_size):
    ours = Translator.from_pretrained(run, batch_size=batch_size)(store)["hi"].values
    # Convolutions of another batch may take another algorithm: 1e-5 of the scaled map, some ten times as much after its
    # inverse, which is steep where maps are bright.
    wanted = translator(store)["hi"].values
    np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-4 * wanted.max())


def test_the_order_of_maps_does_not_matter(translator, gas):
    turned = translator(gas.values[::-1])["hi"].values[::-1]
    wanted = translator(gas)["hi"].values
    np.testing.assert_allclose(turned, wanted, rtol=1e-4, atol=1e-4 * wanted.max())


def test_bfloat16_is_close(run, translator, gas):
    half, full = (t(gas)["hi"].values for t in (Translator.from_pretrained(run, precision="bf16"), translator))
    assert half.dtype == np.float32
    scaling = translator.translation.target[0].scaling
    # Eight bits of mantissa in some ten layers, on the scaled maps that the network makes.
    assert np.abs(scaling.forward(half) - scaling.forward(full)).max() < 0.05


def test_another_unit_of_the_same_quantity_is_converted(translator, gas):
    other = gas.to("g / cm2")
    assert not np.allclose(other.values, gas.values)
    hi = translator(other)["hi"]
    assert hi.unit == UNIT
    # Two roundings to float32 on the way.
    wanted = translator(gas)["hi"].values
    np.testing.assert_allclose(hi.values, wanted, rtol=1e-4, atol=1e-5 * wanted.max())


def test_an_empty_sky_stays_finite(translator):
    hi = translator(np.zeros((2, 32, 32), np.float32))["hi"].values
    assert np.isfinite(hi).all()
    assert hi.min() >= 0


@pytest.mark.parametrize("size", [(50, 37), (1, 1), (7, 64)])
def test_any_size_is_translated(translator, size):
    rng = np.random.default_rng(0)
    hi = translator(rng.exponential(1e6, (2, *size)).astype(np.float32))["hi"].values
    assert hi.shape == (2, *size)
    assert np.isfinite(hi).all()


def test_pixels_unlike_those_of_the_training_are_warned_of(translator, gas):
    low, high = translator.translation.pixel_scale
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        translator(gas)
        translator(Maps(gas.values, "gas", UNIT))  # no side, nothing to compare
    with pytest.warns(UserWarning, match=rf"3 of 3 maps have pixels of .* trained on {low:.3g} to {high:.3g} kpc"):
        translator(Maps(gas.values, "gas", UNIT, np.full(3, 32 * high * 10)))


def test_several_domains_in_and_out(two_to_two, store):
    translator = Translator.from_pretrained(two_to_two)
    maps = translator(store, [4, 5])
    assert {name: stack.unit for name, stack in maps.items()} == {"hi": UNIT, "temperature": "K"}
    given = store_maps(store, ["stars", "gas"], [4, 5])  # by name, whatever the order
    for name, stack in translator(given).items():
        np.testing.assert_array_equal(stack.values, maps[name].values)
    with pytest.raises(MapError, match="takes 2 domains; give them by name"):
        translator(given["gas"].values)
    with pytest.raises(MapError, match=r"gas, stars to hi, temperature.*given are of gas.*'stars' is not among them"):
        translator({"gas": given["gas"]})
    with pytest.raises(MapError, match=r"maps of stars have shape \(2, 16, 16\), of gas \(2, 32, 32\)"):
        translator({"gas": given["gas"], "stars": Maps(given["stars"].values[:, ::2, ::2], "stars", UNIT)})


# --- what is refused


def test_another_domain_is_refused_by_both_names(translator, store):
    with pytest.raises(MapError, match=r"translates gas to hi, the maps given are of stars; 'gas' is not among them"):
        translator(store_maps(store, ["stars"], [0])["stars"])


def test_another_quantity_is_refused(translator, gas):
    with pytest.raises(MapError, match=r"maps of 'gas' are in K, which is not convertible to Msun / kpc2"):
        translator(Maps(gas.values, "gas", "K"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_names_its_map(translator, gas, value):
    values = gas.values.copy()
    values[1, 3, 4] = value
    with pytest.raises(MapError, match=r"1 of 3 maps of 'gas' hold values that are not finite, first map .*view 3"):
        translator(Maps(values, "gas", UNIT, gas.side, gas.names))


@pytest.mark.parametrize("shape", [(32,), (2, 1, 32, 32)])
def test_an_array_of_other_axes_is_refused(translator, shape):
    with pytest.raises(MapError, match=r"shape"):
        translator(np.zeros(shape, np.float32))


def test_a_view_that_is_not_there_is_refused(translator, store):
    with pytest.raises(MapError, match="some of the views asked for are not built yet"):
        translator(store, [0, 999])


def test_a_store_without_the_domain_is_refused(translator, tmp_path):
    other = MapStore.create(tmp_path / "other.zarr", units={"gass": UNIT}, views=1, pixels=8, shard_views=1)
    with pytest.raises(StoreError, match=r"unknown domain 'gas'\. Did you mean 'gass'\?"):
        translator(other)


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "translation.json"])
def test_a_missing_file_is_named(checkpoint, name):
    (checkpoint / name).unlink()
    says = "holds no checkpoint" if name == "translation.json" else f"{name}"
    with pytest.raises(CheckpointError, match=says) as error:
        Translator.from_pretrained(checkpoint)
    assert str(checkpoint) in str(error.value)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match=f"{folder} holds no checkpoint; train one with translate/train.py"):
            Translator.from_pretrained(folder)


def change(checkpoint, **facts):
    path = checkpoint / "translation.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


def test_a_later_format_is_refused(checkpoint):
    change(checkpoint, format=3)
    with pytest.raises(CheckpointError, match="has checkpoint format 3, this skyshift reads up to 2; update it"):
        Translator.from_pretrained(checkpoint)


@pytest.mark.parametrize("facts", [{"source": 3}, {"pixel_scale_kpc": [1]}, {"source": [{"domain": "gas"}]}])
def test_damaged_facts_are_named(checkpoint, facts):
    change(checkpoint, **facts)
    with pytest.raises(CheckpointError, match=r"translation\.json is damaged"):
        Translator.from_pretrained(checkpoint)


def test_weights_cut_short_are_named(checkpoint):
    path = checkpoint / "average.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=f"{path} is damaged"):
        Translator.from_pretrained(checkpoint)


def rewrite(checkpoint, **method):
    path = checkpoint / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["method"] = {**config["method"], **method}
    path.write_text(yaml.safe_dump(config))


def test_weights_of_other_networks_are_refused(checkpoint):
    rewrite(checkpoint, init_args={})
    with pytest.raises(CheckpointError, match=r"the weights do not fit the networks of config\.yaml"):
        Translator.from_pretrained(checkpoint)


@pytest.mark.parametrize("config", ["method: null\n", "method: 3\n", "[]\n", "a: [\n", "method: {init_args: {}}\n"])
def test_a_configuration_without_a_method_is_refused(checkpoint, config):
    (checkpoint / "config.yaml").write_text(config)
    with pytest.raises(CheckpointError, match=r"config\.yaml names no method"):
        Translator.from_pretrained(checkpoint)


def test_arguments_that_a_method_does_not_take_are_refused(checkpoint):
    rewrite(checkpoint, init_args={"later_option": 3})
    with pytest.raises(CheckpointError, match="later_option"):
        Translator.from_pretrained(checkpoint)


def test_what_is_no_method_is_refused(checkpoint):
    rewrite(checkpoint, class_path="skyshift.translate.networks.unet.UNet", init_args={})
    with pytest.raises(CheckpointError, match="UNet is no translation method"):
        Translator.from_pretrained(checkpoint)


def test_foreign_code_runs_only_where_it_is_trusted(checkpoint, tmp_path, monkeypatch, gas, translator):
    (tmp_path / "my_method.py").write_text(
        "from pathlib import Path\n"
        "from skyshift.translate.methods.pix2pix import Pix2Pix\n"
        f"Path({str(tmp_path / 'was_imported')!r}).touch()\n"
        "class Mine(Pix2Pix):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    rewrite(checkpoint, class_path="my_method.Mine")
    with pytest.raises(
        CheckpointError, match=r"my_method\.Mine, which is not part of skyshift.*trust_remote_code=True"
    ):
        Translator.from_pretrained(checkpoint)
    assert not (tmp_path / "was_imported").exists()
    ours = Translator.from_pretrained(checkpoint, trust_remote_code=True)
    assert type(ours.method).__name__ == "Mine"
    np.testing.assert_array_equal(ours(gas)["hi"].values, translator(gas)["hi"].values)


def test_pixels_far_above_those_of_training_are_limited_and_told():
    """sinh makes 3 of a scaled value of 1 a millionfold of the brightest pixel; nothing else of the map changes."""
    channel = Channel.of("hi", UNIT, Asinh(1.0, 1e4), 2e4)
    assert channel == Channel.from_dict(json.loads(json.dumps(channel.to_dict())))
    scaled = np.array([0.0, 0.5, 1.0, 3.0])
    with pytest.warns(UserWarning, match=r"1 of 4 pixels of hi came out above 2e\+05 Msun / kpc2"):
        values = channel.physical(scaled)
    np.testing.assert_allclose(values[:3], Asinh(1.0, 1e4).inverse(scaled[:3]), rtol=1e-6)  # float32
    assert values[3] == np.float32(2e5)
    unlimited = Channel.from_dict({k: v for k, v in channel.to_dict().items() if k != "maximum"})  # an older checkpoint
    assert unlimited.physical(scaled)[3] > 1e9


def test_a_checkpoint_knows_the_brightest_pixel_of_training(run, tiny_store):
    """Of the target domain, and of no other galaxy than those trained on."""
    (channel,) = Translator.from_pretrained(run).translation.target
    store = MapStore(tiny_store)
    views = split_views(store.catalogue(), Split(0.5, 0.2, 0.3, 0))["train"]
    assert channel.maximum == HEADROOM * store.maps("hi", views).max()
