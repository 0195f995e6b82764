"""Survey presets: their numbers, the radiometer equation, and what a file must say."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import yaml

from skyshift.command import shipped_config
from skyshift.datasets.radio import HI_FREQUENCY, kelvin_per_jansky
from skyshift.datasets.surveys import (
    OpticalSurvey,
    RadioSurvey,
    SurveyError,
    get_survey,
    load_survey,
    radio_survey,
    survey_names,
)

RADIO = ("first", "meerkat", "nvss", "ska_mid_aa4", "ska_mid_aa_star", "wsrt")


def write(folder: Path, name: str = "mine", **changes: object) -> Path:
    """The FIRST preset with other entries; ``None`` takes one out."""
    data = yaml.safe_load((shipped_config("surveys") / "first.yaml").read_text()) | changes
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in data.items() if value is not None}))
    return path


def test_every_preset_loads_with_a_source_for_every_number():
    names = survey_names()
    assert set(RADIO) <= set(names)
    assert {"sdss", "decals", "hsc_wide", "lsst_y1", "lsst_y10", "hst_cosmos"} <= set(names)
    for name in names:
        survey = get_survey(name)
        text = (shipped_config("surveys") / f"{name}.yaml").read_text()
        assert len(survey.sources) == text.count("source:") > 0
        assert all(len(source) > 5 for source in survey.sources.values())
        assert survey.name == name


@pytest.mark.parametrize(
    ("name", "sigma", "kelvin"),
    [
        ("meerkat", 173, {8: 1.6, 15: 0.47, 30: 0.12}),
        ("ska_mid_aa_star", 64, {8: 0.60, 15: 0.17, 30: 0.043}),
        ("ska_mid_aa4", 45, {8: 0.43, 15: 0.12, 30: 0.030}),
    ],
)
def test_noise_of_26_khz_in_8_hours(name, sigma, kelvin):
    """µJy/beam and K as published tables round them (half a unit of the last digit)."""
    survey = radio_survey(name)
    noise = survey.noise(26e3, 8 * 3600.0)
    assert noise * 1e6 == pytest.approx(sigma, abs=0.5)
    for beam, expected in kelvin.items():
        step = 0.5 * 10.0 ** -len(str(expected).split(".")[1])
        assert noise * kelvin_per_jansky(HI_FREQUENCY, beam, beam) == pytest.approx(expected, abs=1.05 * step)


def test_sefd_of_equal_dishes_and_of_mixed_arrays():
    meerkat, star = radio_survey("meerkat"), radio_survey("ska_mid_aa_star")
    assert meerkat.array_sefd() == pytest.approx(426 / np.sqrt(64 * 63), rel=1e-12)
    # The formula of the SKAO sensitivity calculator, kinds of baselines one by one
    n, m, s, t = 80, 64, 312.3, 426.0
    expected = (n * (n - 1) / s**2 + 2 * n * m / (s * t) + m * (m - 1) / t**2) ** -0.5
    assert star.array_sefd() == pytest.approx(expected, rel=1e-12)
    alone = dataclasses.replace(meerkat, dishes=(dataclasses.replace(meerkat.dishes[0], count=1),))
    with pytest.raises(SurveyError, match="single dish"):
        alone.array_sefd()


def test_noise_falls_as_the_root_of_bandwidth_and_time():
    for name in RADIO:
        survey = radio_survey(name)
        assert survey.noise(4 * survey.bandwidth_hz) == pytest.approx(survey.noise() / 2, rel=1e-12)
        assert survey.noise(None, 9 * survey.time_s) == pytest.approx(survey.noise() / 3, rel=1e-12)
    # A measured rms stands for the equation; one snapshot of the VLA is near it (overlapping pointings, weights)
    for name, rms in (("nvss", 0.45e-3), ("first", 0.15e-3)):
        survey = radio_survey(name)
        assert survey.noise() == pytest.approx(rms, rel=1e-12)
        thermal = dataclasses.replace(survey, rms_jy=None).noise()
        assert 0.3 < thermal / rms < 1.1


@pytest.mark.parametrize(("bandwidth", "time"), [(0.0, None), (None, 0.0), (-1.0, None), (None, np.nan)])
def test_no_bandwidth_or_time_has_no_noise(bandwidth, time):
    with pytest.raises(SurveyError, match=r"survey 'meerkat': a (bandwidth|time on source) of .* must be positive"):
        radio_survey("meerkat").noise(bandwidth, time)


def test_an_unknown_survey_names_the_nearest():
    with pytest.raises(SurveyError, match=r"unknown survey 'merkat'\. Did you mean 'meerkat'\? Known: .*nvss"):
        get_survey("merkat")
    with pytest.raises(SurveyError, match="'sdss' is an optical one"):
        radio_survey("sdss")


def test_a_file_of_ones_own(tmp_path):
    path = write(tmp_path, pixel={"value": 0.03, "unit": "arcmin", "source": "me"})
    survey = load_survey(path)
    assert isinstance(survey, RadioSurvey)
    assert survey.name == "mine"
    assert survey.pixel_arcsec == pytest.approx(1.8, rel=1e-12)
    assert survey.sources["pixel"] == "me"
    assert survey.sources["dishes.0.sefd"].startswith("NRAO")
    assert isinstance(get_survey("hsc_wide"), OpticalSurvey)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel": None}, "lacks 'pixel'"),
        ({"pixel": {"value": 1, "unit": "arcsec"}}, "'pixel' lacks its source; every number is cited"),
        ({"pixel": {"value": 1, "unit": "arcsec", "source": " "}}, "'pixel' lacks its source"),
        ({"pixel": {"value": 1, "source": "me"}}, "'pixel' lacks its unit"),
        ({"pixel": {"unit": "arcsec", "source": "me"}}, "'pixel' lacks its value"),
        ({"pixel": 1.8}, r"'pixel' must be \{value, unit, source\}, not 1.8"),
        ({"pixel": {"value": 1, "unit": "Jy", "source": "me"}}, "'pixel' is no number in units of arcsec"),
        ({"pixel": {"value": "wide", "unit": "arcsec", "source": "me"}}, "'pixel' is no number"),
        ({"beam_major": {"value": 0, "unit": "arcsec", "source": "me"}}, "'beam_major' is 0.0; it must be positive"),
        ({"beam_minor": {"value": -5, "unit": "arcsec", "source": "me"}}, "'beam_minor' is -5.0; it must be positive"),
        ({"time": {"value": 0, "unit": "s", "source": "me"}}, "'time' is 0.0; it must be positive"),
        ({"bandwith": {"value": 1, "unit": "Hz", "source": "me"}}, "unknown key 'bandwith'. Did you mean 'bandwidth'"),
        ({"dishes": []}, "'dishes' must be a list with entries"),
        ({"dishes": [{"count": {"value": 2, "unit": "", "source": "me"}}]}, r"lacks 'dishes\.0\.diameter'"),
        ({"kind": "infrared"}, "'kind' must be one of radio, optical"),
        ({"title": 3}, "'title' must be a text, not 3"),
        ({"pixel": {"value": True, "unit": "arcsec", "source": "me"}}, "'pixel' is no number but True"),
        ({"title": True}, "'title' must be a text, not True"),
        ({"mosaic": "false"}, "'mosaic' must be true or false, without quotes, not 'false'"),
        ({"kind": ["radio"]}, "'kind' must be one of radio, optical"),
    ],
)
def test_what_a_file_must_say(tmp_path, changes, message):
    path = write(tmp_path, **changes)
    before = path.read_bytes()
    with pytest.raises(SurveyError, match=rf"mine\.yaml.*{message}"):
        load_survey(path)
    assert path.read_bytes() == before


def test_no_file_and_no_yaml(tmp_path):
    with pytest.raises(SurveyError, match=r"none\.yaml does not exist; .*meerkat"):
        load_survey(tmp_path / "none.yaml")
    for content in (b"a: [1", b"\x89HDF\r\n\x1a\n\xff\xfe", b"kind: radio\x00"):
        (tmp_path / "bad.yaml").write_bytes(content)
        with pytest.raises(SurveyError, match=r"bad\.yaml is no YAML"):
            load_survey(tmp_path / "bad.yaml")


def test_a_band_that_is_turned_round_and_a_layout_that_is_none(tmp_path):
    low = {"value": 1800, "unit": "MHz", "source": "me, on purpose"}
    with pytest.raises(SurveyError, match=r"survey 'mine': the band ends .* before it begins .* exchange them"):
        load_survey(write(tmp_path, band_low=low))
    with pytest.raises(SurveyError, match=r"survey 'mine': unknown layout 'vla_c'\. Did you mean 'vla_[bd]'"):
        load_survey(write(tmp_path, layout="vla_c"))
    table = tmp_path / "array.txt"
    table.write_text("0 0\n100 0\n")
    assert load_survey(write(tmp_path, layout=str(table))).layout == str(table)
