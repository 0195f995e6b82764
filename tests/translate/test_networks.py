"""Networks: any size in, the same size out; amplitude is kept; a patch is as large as it says."""

import re

import jsonargparse
import pytest
import torch
from torch import nn

from skyshift.translate.networks.blocks import normalisation, pad_to_multiple, upsample
from skyshift.translate.networks.patchgan import PatchGAN
from skyshift.translate.networks.resnet import ResNet
from skyshift.translate.networks.unet import UNet

NORMS = ("instance", "batch", "group", "none")
PADDINGS = ("reflect", "replicate", "zeros")
UPSAMPLINGS = ("bilinear", "transposed")
SIZES = ((64, 64), (50, 37), (17, 17))  # a multiple of the stride, none, and one pixel more than one


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def small_unet(in_channels=2, out_channels=3, **options):
    return UNet(in_channels, out_channels, **{"width": 8, "depth": 2, **options})


def small_resnet(in_channels=2, out_channels=3, **options):
    return ResNet(in_channels, out_channels, **{"width": 8, "blocks": 1, **options})


GENERATORS = (small_unet, small_resnet)


# --- blocks


@pytest.mark.parametrize(("channels", "groups"), [(32, 8), (12, 6), (7, 7), (11, 1), (1, 1)])
def test_group_normalisation_takes_the_largest_divisor_up_to_eight(channels, groups):
    assert normalisation("group", channels).num_groups == groups


@pytest.mark.parametrize("mode", PADDINGS)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 5), (17, 31), (32, 48)])
def test_crop_undoes_pad_exactly(size, mode):
    x = torch.randn(2, 3, *size)
    padded, crop = pad_to_multiple(x, 16, mode)
    assert padded.shape[-2] % 16 == padded.shape[-1] % 16 == 0
    assert padded.shape[-2] - size[0] < 16
    assert padded.shape[-1] - size[1] < 16
    torch.testing.assert_close(crop(padded), x, rtol=0, atol=0)
    assert crop(padded[:, :1]).shape == (2, 1, *size)


def test_padding_is_balanced_and_continues_the_map():
    x = torch.arange(5.0).expand(1, 1, 5, 5)
    padded, _ = pad_to_multiple(x, 8, "reflect")
    assert padded[0, 0, 4].tolist() == [1, 0, 1, 2, 3, 4, 3, 2]
    # Rows of two pixels are too short to reflect three, so they are replicated; the columns are not.
    padded, _ = pad_to_multiple(x[..., :2], 8, "reflect")
    assert padded[0, 0, 4].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert padded.shape == (1, 1, 8, 8)


def test_no_padding_means_no_copy():
    x = torch.randn(1, 1, 32, 32)
    assert pad_to_multiple(x, 16, "reflect")[0] is x


def test_minimum_is_kept():
    assert pad_to_multiple(torch.randn(1, 1, 3, 20), 4, "reflect", minimum=8)[0].shape[-2:] == (8, 20)


def test_an_empty_map_is_refused():
    with pytest.raises(ValueError, match="0 x 4 pixels is empty"):
        pad_to_multiple(torch.zeros(1, 1, 0, 4), 4, "zeros")


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_bilinear_upsampling_of_a_constant_has_no_checkerboard(mode):
    up = upsample("bilinear", 3, 4, mode).double()
    y = up(torch.full((1, 3, 6, 7), 2.0, dtype=torch.float64))
    # Any weights: all output pixels are made alike, to the last bit but for the order of sums.
    torch.testing.assert_close(y, y[..., :1, :1].expand_as(y), rtol=1e-12, atol=1e-12)
    nn.init.constant_(up[1].weight, 1.0 / 27.0)
    nn.init.zeros_(up[1].bias)
    y = up(torch.full((1, 3, 6, 7), 2.0, dtype=torch.float64))
    torch.testing.assert_close(y, torch.full((1, 4, 12, 14), 2.0, dtype=torch.float64))


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_transposed_upsampling_repeats_with_period_two_up_to_the_border(mode):
    y = upsample("transposed", 3, 4, mode)(torch.ones(1, 3, 6, 7))
    torch.testing.assert_close(y, y[..., :2, :2].repeat(1, 1, 6, 7))  # the checkerboard that a constant gets
    assert y[..., :2, :2].std() > 0.01


def test_transposed_upsampling_pads_no_differently_inside():
    zeros, reflect = (upsample("transposed", 2, 2, mode) for mode in ("zeros", "reflect"))
    reflect[1].load_state_dict(zeros.state_dict())
    x = torch.randn(1, 2, 6, 6)
    torch.testing.assert_close(zeros(x)[..., 1:-1, 1:-1], reflect(x)[..., 1:-1, 1:-1])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: normalisation("instnace", 4), "unknown normalisation 'instnace', did you mean 'instance'"),
        (lambda: normalisation(None, 4), "did you mean 'none'"),
        (lambda: upsample("bilinar", 4, 4), "unknown upsampling 'bilinar', did you mean 'bilinear'"),
        (lambda: upsample("bilinear", 4, 4, "zero"), "unknown padding 'zero', did you mean 'zeros'"),
        (lambda: pad_to_multiple(torch.zeros(1, 1, 4, 4), 4, "mirror"), "unknown padding 'mirror'"),
        (lambda: UNet(1, 1, norm="groups"), "did you mean 'group'"),
        (lambda: UNet(1, 1, padding="reflection"), "did you mean 'reflect'"),
        (lambda: UNet(1, 1, upsampling="transpose"), "did you mean 'transposed'"),
        (lambda: UNet(1, 1, depth=0), "depth is 0; it must be at least 1"),
        (lambda: UNet(1, 2, residual=True), "adds the 1 source channels to 2 target channels"),
        (lambda: ResNet(1, 1, norm="bach"), "did you mean 'batch'"),
        (lambda: ResNet(1, 1, padding="replicated"), "did you mean 'replicate'"),
        (lambda: ResNet(1, 1, blocks=-1), "blocks is -1"),
        (lambda: PatchGAN(1, norm="nome"), "did you mean 'none'"),
        (lambda: PatchGAN(1, padding="zeroes"), "did you mean 'zeros'"),
        (lambda: PatchGAN(1, layers=0), "layers is 0"),
    ],
)
def test_what_is_wrong_is_named_with_the_nearest(build, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


# --- generators


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("build", GENERATORS)
def test_any_size_in_is_the_size_out_and_every_parameter_learns(build, norm, padding, upsampling):
    net = build(norm=norm, padding=padding, upsampling=upsampling)
    for size in SIZES:
        y = net(torch.randn(2, 2, *size))
        assert y.shape == (2, 3, *size)
        net.zero_grad()
        y.square().sum().backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("build", [UNet, ResNet])
def test_defaults_take_the_smallest_maps(build, norm):
    # One map of one pixel, in training: the worst case for batch and instance normalisation.
    for size in ((1, 1), (1, 9), (5, 3)):
        assert build(1, 1, norm=norm)(torch.randn(1, 1, *size)).shape == (1, 1, *size)


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@pytest.mark.parametrize("build", GENERATORS)
def test_translation_equivariance_by_the_stride(build, upsampling):
    net = build(norm="none", upsampling=upsampling).double()
    x = torch.randn(1, 2, 128, 128, dtype=torch.float64)
    shift = net.stride
    with torch.no_grad():
        moved = net(x.roll((shift, -shift), (2, 3)))
        expected = net(x).roll((shift, -shift), (2, 3))
    # At depth 2 a pixel sees less than 48 pixels around it, so the centre knows nothing of the border.
    inside = slice(48, -48)
    torch.testing.assert_close(moved[..., inside, inside], expected[..., inside, inside], rtol=0, atol=1e-12)
    assert (moved - net(x))[..., inside, inside].abs().max() > 1e-3


@pytest.mark.parametrize("norm", NORMS)
def test_unet_knows_the_amplitude_of_a_map(norm):
    net = UNet(1, 1, width=8, depth=3, norm=norm)
    x = torch.rand(4, 1, 32, 32)
    with torch.no_grad():
        one, two, million = net(x), net(2 * x), net(1e6 * x)
    # A network that divides the amplitude out gives the same for all three. Level 0 carries it, and without
    # limit: a million times the map is about a million times the output.
    assert (two - one).norm() > 0.1 * one.norm()
    assert million.norm() > 1e5 * one.norm()


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@pytest.mark.parametrize("build", [UNet, ResNet])
def test_amplitude_survives_the_initial_weights(build, upsampling):
    # He initialisation: neither vanishing nor exploding through some twenty layers without normalisation.
    outputs = torch.stack(
        [build(1, 1, norm="none", upsampling=upsampling)(torch.randn(2, 1, 32, 32)) for _ in range(4)]
    )
    assert 0.1 < outputs.square().mean().sqrt() < 10


def test_unet_channels_widen_eightfold_and_no_more():
    net = UNet(1, 1, width=4, depth=5)
    assert [block[0].out_channels for block in net.encoder] == [4, 8, 16, 32, 32, 32]


def test_residual_unet_starts_from_its_source():
    net = UNet(2, 2, width=4, depth=1, residual=True)
    nn.init.zeros_(net.head.weight)
    nn.init.zeros_(net.head.bias)
    x = torch.randn(1, 2, 9, 9)
    torch.testing.assert_close(net(x), x)


def test_dropout_is_noise_in_training_only():
    net = small_unet(dropout=0.5)
    x = torch.randn(1, 2, 16, 16)
    assert not torch.equal(net(x), net(x))
    net.eval()
    torch.testing.assert_close(net(x), net(x), rtol=0, atol=0)
    assert sum(isinstance(module, nn.Dropout) for module in UNet(1, 1, depth=5, dropout=0.5).modules()) == 3


@pytest.mark.parametrize("build", [*GENERATORS, lambda: PatchGAN(2, width=8)])
def test_low_precision_runs_and_agrees(build):
    net = build()
    x = torch.randn(2, 2, 32, 32)
    exact = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x)
    y.float().square().sum().backward()
    # bfloat16 keeps 8 bits; a dozen layers add up to a few per cent.
    assert (y.float() - exact).norm() < 0.1 * exact.norm()


# --- discriminator


@pytest.mark.parametrize(("layers", "field"), [(1, 16), (2, 34), (3, 70), (4, 142)])
def test_receptive_field_is_what_gradients_reach(layers, field):
    net = PatchGAN(1, width=2, layers=layers, norm="none").double()
    assert net.receptive_field == field
    x = torch.randn(1, 1, 3 * field, 3 * field, dtype=torch.float64, requires_grad=True)
    logits = net(x)
    middle = logits.shape[-1] // 2
    logits[0, 0, middle, middle].backward()
    for axis in (0, 1):
        reached = x.grad[0, 0].abs().amax(dim=axis).nonzero()
        assert int(reached.max() - reached.min()) + 1 == field
    # The patch of the neighbouring logit lies one stride further.
    first = int(reached.min())
    x.grad = None
    net(x)[0, 0, middle, middle + 1].backward()
    assert int(x.grad[0, 0].abs().amax(dim=0).nonzero().min()) - first == net.stride


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("norm", NORMS)
def test_patchgan_judges_every_patch_and_learns(norm, padding):
    net = PatchGAN(3, width=8, norm=norm, padding=padding)
    for height, width in ((64, 64), (50, 37), (24, 25)):
        logits = net(torch.randn(2, 3, height, width))
        assert logits.shape == (2, 1, height // 8 - 2, width // 8 - 2)
        net.zero_grad()
        logits.square().sum().backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_patchgan_says_how_large_a_map_must_be(layers):
    net = PatchGAN(1, width=2, layers=layers)
    least = net.minimum_size
    assert least == 3 * 2**layers
    assert net(torch.randn(1, 1, least, least)).shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match=rf"{least - 1} x {least} pixels.*at least {least} x {least}"):
        net(torch.randn(1, 1, least - 1, least))


def test_logits_are_translation_equivariant_by_the_stride():
    net = PatchGAN(1, width=4, layers=2, norm="none").double()
    x = torch.randn(1, 1, 96, 96, dtype=torch.float64)
    moved = net(x.roll(net.stride, -1))
    inside = slice(6, -6)
    torch.testing.assert_close(moved[..., inside, inside], net(x).roll(1, -1)[..., inside, inside])


# --- all


@pytest.mark.parametrize(
    "net",
    [
        build(norm=norm, **options)
        for norm in NORMS
        for build, options in (
            (small_unet, {"dropout": 0.5}),
            (small_resnet, {}),
            (lambda **options: PatchGAN(2, width=8, **options), {}),
        )
    ],
    ids=lambda net: type(net).__name__,
)
def test_nothing_works_in_place_or_is_shared(net):
    for name, module in net.named_modules():
        assert not getattr(module, "inplace", False), name
    # Explanations by DeepLIFT hook each activation, so none may serve in two places.
    calls = {}
    for module in net.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda m, *_: calls.update({m: calls.get(m, 0) + 1}))
    net(torch.randn(2, 2, 32, 32))
    assert set(calls.values()) == {1}


@pytest.mark.parametrize("network", [UNet, ResNet, PatchGAN])
def test_a_configuration_fills_it(network):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "net")
    channels = {"in_channels": 1} if network is PatchGAN else {"in_channels": 1, "out_channels": 2}
    path = f"{network.__module__}.{network.__name__}"
    config = {"class_path": path, "init_args": {**channels, "width": 4}}
    net = network(**parser.parse_object({"net": config}).net.init_args.as_dict())
    assert net(torch.randn(1, 1, 32, 32)).shape[0] == 1
    config["init_args"]["norm"] = "layer"
    with pytest.raises(jsonargparse.ArgumentError, match="layer"):
        parser.parse_object({"net": config})
