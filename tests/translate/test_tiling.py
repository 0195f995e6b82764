"""Tiles give what the whole map gives: exactly where the network is local, closely where it normalises."""

import numpy as np
import pytest
import torch
from torch import nn

from skyshift.errors import SkyshiftError
from skyshift.translate.methods.base import Noise, TranslationMethod
from skyshift.translate.methods.cyclegan import GeneratorPair
from skyshift.translate.metrics.seams import border_error, seam_excess
from skyshift.translate.networks.diffusion_unet import DiffusionUNet
from skyshift.translate.networks.domain_unet import DomainUNet
from skyshift.translate.networks.resnet import ResNet
from skyshift.translate.networks.time_unet import TimeUNet
from skyshift.translate.networks.unet import UNet
from skyshift.translate.tiling import TiledNetwork, Tiling, blended, starts, tiled, window


def field(size, seed=0):
    """Smooth and rough structure that does not fade to the border."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 1, size // 8, size // 8, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")
    return smooth + 0.3 * torch.randn(1, 1, size, size, generator=generator)


@pytest.mark.parametrize("size", [64, 100, 129])
@pytest.mark.parametrize(("tile", "overlap"), [(32, 0), (32, 12), (48, 24)])
def test_windows_are_a_partition_of_unity(size, tile, overlap):
    at = starts(size, tile, overlap)
    assert at[0] == 0
    assert at[-1] == size - tile
    total = torch.zeros(size)
    for place in at:
        total[place : place + tile] += window(tile, overlap, place == 0, place == at[-1])
    assert float(total.min()) > 0.4
    # Before the last tile, which may overlap more than the others, the weights sum to 1.
    np.testing.assert_allclose(total[: at[-1]], 1.0, atol=1e-6)


@pytest.mark.parametrize("padding", ["zeros", "reflect", "replicate"])
@pytest.mark.parametrize("size", [96, 90])
def test_a_network_without_normalisation_gives_the_same_on_tiles(padding, size):
    """A U-Net of one halving reaches 14 pixels or less: within a third of the overlap."""
    torch.manual_seed(0)
    network = UNet(1, 1, width=4, depth=1, norm="none", padding=padding).eval()
    x = field(96)[..., :size, :size]
    with torch.no_grad():
        whole, made = network(x), TiledNetwork(network, Tiling(84, 42))(x)
    assert made.shape == whole.shape
    # The border of a map whose size the halving divides is padded alike; sums in another order.
    torch.testing.assert_close(made, whole, rtol=1e-5, atol=1e-5)


def test_without_overlap_there_are_seams_and_with_it_none():
    torch.manual_seed(0)
    network = UNet(1, 1, width=4, depth=1, norm="none", padding="zeros").eval()
    x = field(128)
    with torch.no_grad():
        whole = network(x)[0, 0].numpy()
        cut = TiledNetwork(network, Tiling(32, 0))(x)[0, 0].numpy()
        blend = TiledNetwork(network, Tiling(64, 32))(x)[0, 0].numpy()
    assert seam_excess(cut - whole + whole, starts(128, 32, 0)[1:]) > 0.2
    assert np.abs(blend - whole).max() < 0.05 * np.abs(cut - whole).max()


@pytest.mark.parametrize("norm", ["group", "instance"])
def test_shared_statistics_are_those_of_the_whole_map(norm):
    torch.manual_seed(0)
    network = UNet(1, 1, width=4, depth=1, norm=norm, padding="reflect").eval()
    x = torch.cat([field(160), field(160, 1)])
    x = x * torch.linspace(0.2, 3.0, 160)  # whose amplitude differs from tile to tile

    def error(tiling):
        return float((TiledNetwork(network, tiling)(x) - whole).abs().mean() / whole.std())

    with torch.no_grad():
        whole = network(x)
        assert error(Tiling(96, 48)) < 1e-5  # sums in another order
        assert error(Tiling(96, 48, statistics="local")) > 0.02
        # The networks themselves are as they were.
        torch.testing.assert_close(network(x), whole, rtol=0, atol=0)


@torch.no_grad()
def test_the_network_of_diffusers_gives_the_same_on_tiles():
    """Its group norms, in the middle too, see the whole map; what is left is reach beyond the overlap."""
    torch.manual_seed(0)
    network = DiffusionUNet(2, 1, width=8, depth=1, blocks=1).eval()
    for parameter in network.parameters():  # its last layers begin at zero, which any tiling would get right
        parameter.normal_(std=0.2)
    x, t = torch.cat([field(192), field(192, 1)], 1) * torch.linspace(0.2, 2.0, 192), torch.tensor([300.0])
    whole = network(x, t)

    def error(tiling):
        return float((TiledNetwork(network, tiling)(x, t) - whole).abs().mean() / whole.std())

    assert error(Tiling(128, 64)) < 1e-4
    assert error(Tiling(128, 64, statistics="local")) > 0.01


def test_batches_and_arguments_without_a_place_reach_every_tile():
    class Timed(nn.Module):
        stride = 1

        def forward(self, x, t):
            return x * t[:, None, None, None]

    x, t = torch.rand(3, 2, 40, 56), torch.tensor([1.0, 2.0, 3.0])
    made = TiledNetwork(Timed(), Tiling(16, 4, batch=3))(x, t)
    torch.testing.assert_close(made, x * t[:, None, None, None])


@pytest.mark.parametrize(
    "network",
    [
        lambda: UNet(1, 1, width=4, depth=3),
        lambda: ResNet(1, 1, width=4, downsamplings=3),
        lambda: TimeUNet(1, 1, width=4, depth=3),
        lambda: DomainUNet(6, 1, width=4, depth=3),
        lambda: DiffusionUNet(2, 1, width=8, depth=3),
        lambda: GeneratorPair(UNet(1, 1, width=4, depth=3), ResNet(1, 1, width=4)),
    ],
)
def test_every_network_says_on_which_grid_it_stands(network):
    """Three halvings: tiles start at multiples of 8, else their pooling would not be that of the whole map."""
    made = network()
    assert made.stride == 8
    assert made.padding == "reflect"


class Sampler(TranslationMethod):
    """Three noisy steps of a network without a place of its own."""

    players = ("network", "discriminator")
    stochastic = True

    def __init__(self):
        super().__init__(1, 1)
        torch.manual_seed(0)
        self.network = ResNet(1, 1, width=2, blocks=1, downsamplings=1, norm="none")
        self.discriminator = nn.Conv2d(1, 1, 1)

    def loss(self, *arguments):
        raise NotImplementedError

    def translate(self, source, *, noise=None, calls=None):
        x, noise = source, self._noise(noise, source)
        for _ in range(3):
            x = 0.5 * x + 0.1 * self.network(x) + 0.1 * noise.normal(*x.shape[1:])
        return self.finish(source, x)


@torch.no_grad()
def test_a_sampler_runs_on_the_whole_map_and_its_calls_on_tiles():
    method, x = Sampler().eval(), field(160)
    keys = list(method.state_dict())
    whole = method.translate(x, noise=Noise([7]))
    with tiled(method, Tiling(96, 48)):
        made = method.translate(x, noise=Noise([7]))
    torch.testing.assert_close(made, whole, rtol=1e-4, atol=1e-4)
    assert list(method.state_dict()) == keys


@torch.no_grad()
def test_whole_translations_of_tiles_are_blended_without_a_seam():
    x = field(96)
    made = blended(lambda tile, number: 2 * tile + 1, x, Tiling(32, 16))
    torch.testing.assert_close(made, 2 * x + 1)
    numbers = []
    blended(lambda tile, number: numbers.append(number) or tile, x, Tiling(32, 16))
    assert numbers == list(range(25))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: Tiling(64, 33), "tiles of 64 pixels cannot overlap by 33: at most by half their side, 32"),
        (lambda: Tiling(64, -1), "overlap ≥ 0"),
        (lambda: Tiling(-64, 0), "tile ≥ 0"),
        (lambda: Tiling(64, 16, batch=0), "batch ≥ 1"),
        (lambda: Tiling(64, 16).require_fits(32, 48), "tiles of 64 pixels are larger than the maps of 32 x 48"),
        (lambda: TiledNetwork(UNet(1, 1, width=4, depth=3), Tiling(60, 20)), "take a multiple of 8"),
        (lambda: TiledNetwork(UNet(1, 1, width=4, depth=3), Tiling(8, 4)), "at least 16"),
    ],
)
def test_tiles_that_cannot_be_are_refused(act, message):
    with pytest.raises(SkyshiftError, match=message):
        act()


# --- what is measured


def test_seams_of_a_known_size_are_found():
    generator = np.random.default_rng(0)
    maps = generator.normal(size=(4, 64, 64))
    assert abs(seam_excess(maps, [16, 32, 48])) < 0.1  # white noise has jumps everywhere
    planted = maps.copy()
    planted[:, :, 32:] += 4.0
    # Over rows and columns: jumps of |N(4, √2)| in one of six lines, of mean 2/√π elsewhere.
    assert seam_excess(planted, [16, 32, 48]) == pytest.approx((4.0 / (2 / np.pi**0.5) - 1) / 6, abs=0.1)
    assert np.isnan(seam_excess(np.zeros((1, 8, 8)), [4]))


def test_border_errors_of_a_known_size_are_found():
    truth = np.zeros((3, 40, 40))
    estimate = np.ones_like(truth)
    estimate[:, 2:-2, 2:-2] = 0.5
    distance, error, excess = border_error(truth, estimate)
    np.testing.assert_allclose(error[distance < 2], 1.0)
    np.testing.assert_allclose(error[distance >= 2], 0.5)
    assert excess == pytest.approx(1.0)  # twice the error of the interior
    with pytest.raises(SkyshiftError, match="one shape"):
        border_error(truth, estimate[:, 1:])
