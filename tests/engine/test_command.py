"""Command lines: what is unknown is named with its nearest, and what is shipped is known."""

import os
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
import yaml

from skyshift.checkpoint import make
from skyshift.command import CommandError, command, parse, shipped_config
from skyshift.datasets.collect import CollectConfig
from skyshift.datasets.download import DownloadConfig
from skyshift.datasets.observe import ObserveConfig
from skyshift.datasets.shards import BuildConfig
from skyshift.datasets.sources import GalaxySource
from skyshift.datasets.surveys import get_survey
from skyshift.errors import SkyshiftError
from skyshift.naming import nearest, unknown
from skyshift.translate import train
from skyshift.translate.any_to_any import PLANES
from skyshift.translate.explain_work import ExplainConfig
from skyshift.translate.methods.base import TranslationMethod

CONFIG = "translate/gas_to_hi.yaml"
OFFERED = (TranslationMethod, *train.NETWORKS)


def parsed(*arguments, default=CONFIG):
    return parse(train.TrainConfig, list(arguments), default, "Train.", OFFERED)


def refused(capsys, *arguments):
    """The message of a command line that cannot be parsed."""
    with pytest.raises(CommandError) as error:
        parsed(*arguments)
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--training.step", "5"], "did you mean 'training.steps'?"),
        (["--trainning.steps", "5"], "did you mean 'training.steps'?"),
        (["--outptu", "x"], "did you mean 'output'?"),
        (["--data.sourse", "[gas]"], "did you mean 'data.source'?"),
        (["--data.split.trian", "0.5"], "did you mean 'data.split.train'?"),
        (["--method.class_path", "Pix2Pux"], "did you mean 'Pix2Pix'?"),
        (["--method.class_path", "skyshift.translate.methods.pix2pix.Pix2Pax"], "did you mean 'Pix2Pix'?"),
        (["--method.init_args.generator.class_path", "UNett"], "did you mean 'UNet'?"),
        (["--method.init_args.l1_wieght", "5"], "did you mean 'l1_weight'?"),
        (["--method.init_args.generator.init_args.widht", "5"], "did you mean 'width'?"),
    ],
)
def test_what_is_unknown_on_the_command_line_is_named_with_its_nearest(capsys, arguments, hint):
    assert hint in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"trainig": {"steps": 5}}, "did you mean 'training.steps'?"),
        ({"training": {"learning_rat": 5}}, "did you mean 'learning_rate'?"),
        ({"method": {"class_path": "Pix3Pix"}}, "did you mean 'Pix2Pix'?"),
    ],
)
def test_what_is_unknown_in_a_file_is_named_with_its_nearest(capsys, tmp_path, change, hint):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(change))
    assert hint in refused(capsys, "--config", str(path))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--training.steps", "many"], "training.steps"),
        (["--training.schedule", "exponential"], "training.schedule"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_a_value_of_the_wrong_kind_names_its_key(capsys, arguments, says):
    assert says in refused(capsys, *arguments)


def test_a_file_that_is_no_yaml_is_refused(capsys, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("training: [1, 2")
    message = refused(capsys, "--config", str(path))
    assert "Problems parsing config" in message
    assert "line 1, column 11" in message


def test_the_real_command_leaves_with_status_two_and_no_traceback(repository, tmp_path):
    result = subprocess.run(
        [sys.executable, repository / "translate" / "train.py", "--training.stpes", "5"],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "unknown 'training.stpes'; did you mean 'training.steps'?" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_later_argument_overrides_an_earlier_one_and_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("training: {steps: 7, batch_size: 3}\noutput: from_file\n")
    config, plain = parsed("--config", str(path), "--training.steps", "8", "--training.steps", "9")
    assert (config.training.steps, config.training.batch_size, config.output) == (9, 3, "from_file")
    assert plain["training"]["steps"] == 9
    second = tmp_path / "second.yaml"
    second.write_text("training: {steps: 11}\n")
    config, _ = parsed("--config", str(path), "--config", str(second))
    assert (config.training.steps, config.training.batch_size) == (11, 3)


def test_the_default_is_the_shipped_configuration():
    config, plain = parsed("--training.steps", "5")
    shipped = yaml.safe_load(shipped_config(CONFIG).read_text())
    assert config.training.steps == 5
    assert config.training.learning_rate == shipped["training"]["learning_rate"]
    assert plain["method"] == {
        **plain["method"],
        "class_path": "skyshift.translate.methods.pix2pix.Pix2Pix",
    }
    assert "config" not in plain


def test_what_is_stored_makes_the_same_run_again(tmp_path):
    _, plain = parsed("--training.steps", "5", "--method.init_args.generator.init_args.width", "6")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(plain))
    config, again = parsed("--config", str(path))
    assert again == plain
    assert next(config.method(1, 1).generator.parameters()).shape[0] == 6


def test_a_file_without_a_method_stores_the_one_that_ran(tmp_path):
    """Else its checkpoints could not be loaded."""
    path = tmp_path / "mine.yaml"
    path.write_text("training: {steps: 7}\n")
    config, plain = parsed("--config", str(path))
    assert plain["method"]["class_path"] == "skyshift.translate.methods.pix2pix.Pix2Pix"
    made = make(plain["method"])(1, 2)
    assert type(made) is type(config.method(1, 2))
    assert {k: v.shape for k, v in made.state_dict().items()} == {
        k: v.shape for k, v in config.method(1, 2).state_dict().items()
    }


def test_print_config_prints_what_would_run(capsys):
    with pytest.raises(SystemExit) as error:
        parsed("--training.steps", "5", "--print_config")
    assert error.value.code in (0, None)
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["training"]["steps"] == 5
    assert printed["method"]["class_path"] == "skyshift.translate.methods.pix2pix.Pix2Pix"


def shipped(repository, stage):
    found = sorted((repository / "configs" / stage).glob("*.yaml"))
    assert found
    return found


def test_every_shipped_translation_is_known(repository):
    for path in shipped(repository, "translate"):
        if path.stem == "explain":
            assert parse(ExplainConfig, ["--config", str(path)], None, "Explain.")[0].probes
            continue
        config, _ = parsed("--config", str(path))
        any_to_any = len(config.data.domains)
        channels = (PLANES * any_to_any, 1) if any_to_any else (len(config.data.source), len(config.data.target))
        assert isinstance(config.method(*channels), TranslationMethod), path
        if config.data.build:
            assert shipped_config(config.data.build).is_file(), path


def test_every_shipped_store_is_known(repository):
    """A file of this folder is for one of four commands, which its name says."""
    for path in shipped(repository, "datasets"):
        line = ["--config", str(path)]
        if path.stem == "download":
            # and the change that the README makes to it
            config, _ = parse(DownloadConfig, [*line, "--minimum_mass", "{stars: 1e10}"], None, "Download.")
            assert config.minimum_mass == {"stars": 1e10}
        elif path.stem.startswith("observe_"):
            observed, _ = parse(ObserveConfig, line, None, "Observe.")
            assert get_survey(observed.survey).name, path
        elif path.stem.startswith("collect_"):
            collected, _ = parse(CollectConfig, line, None, "Collect.")
            assert set(collected.inputs) == {"first", "nvss"}
        else:
            built, _ = parse(BuildConfig, line, None, "Build.", (GalaxySource,))
            assert isinstance(built.source, GalaxySource), path


# --- errors that a person can put right


@dataclass
class Small:
    """A configuration.

    Attributes:
        size: In pixels.
        names: Of things.
    """

    size: int = 3
    names: list[str] = field(default_factory=list)


def test_only_what_a_person_can_put_right_is_printed_without_a_traceback(capsys):
    @command
    def asked():
        raise SkyshiftError("the store is not there; build it")

    @command
    def broken():
        raise ZeroDivisionError

    with pytest.raises(CommandError) as error:
        asked()
    assert error.value.code == 1
    assert capsys.readouterr().err == "error: the store is not there; build it\n"
    with pytest.raises(ZeroDivisionError):
        broken()


def test_a_configuration_without_a_file_has_its_defaults():
    config, plain = parse(Small, ["--size", "5", "--names", '["a", "b"]'], None, "Small.")
    assert config == Small(5, ["a", "b"])
    assert plain == {"size": 5, "names": ["a", "b"]}


def test_nearest_is_by_likeness_whatever_the_case():
    known = ["gas", "stars", "temperature"]
    assert nearest("Temprature", known) == "temperature"
    assert nearest("xyzzy", known) is None
    assert unknown("domain", "star", known) == (
        "unknown domain 'star'. Did you mean 'stars'? Known: gas, stars, temperature."
    )
    assert unknown("domain", "q", []) == "unknown domain 'q'. Known: none."
