"""The equivariant encoder: a representation of D4, equivariance of every layer, invariance of the features."""

import itertools

import pytest
import torch

from skyshift.adapt.classifier import TARGET
from skyshift.adapt.equivariant import (
    D4CNN,
    INVERSE,
    ORDER,
    PRODUCT,
    GroupConv,
    Level,
    Lifting,
    Norm,
    pool,
    transform,
    transform_features,
)
from skyshift.errors import SkyshiftError

SIZES = [(12, 12), (11, 11), (9, 14), (7, 13)]
"""Even, odd, mixed and oblong."""

EXACT = 1e-12
"""Of float64: sums of some hundred terms of order 1, in another order, differ by 1e-14."""


def randomise(module):
    """Scales and shifts that are not 1 and 0."""
    for parameter in module.parameters():
        if parameter.ndim < 3:
            torch.nn.init.normal_(parameter, 0.5, 1.0)
    return module.double().eval()


def test_the_tables_are_those_of_the_transformations():
    """Applied to pixels, one after the other, transformations compose as the tables say; all eight differ."""
    pixels = torch.arange(9).reshape(3, 3)
    views = [transform(pixels, g) for g in range(ORDER)]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(views, 2))
    for g, h in itertools.product(range(ORDER), repeat=2):
        assert torch.equal(transform(transform(pixels, h), g), views[PRODUCT[g][h]])
    assert [PRODUCT[g][INVERSE[g]] for g in range(ORDER)] == [0] * ORDER
    assert PRODUCT[1][4] != PRODUCT[4][1]  # the group does not commute: an order that is wrong would be seen


def test_features_carry_a_representation():
    """What h then g make of features is what their product makes."""
    features = torch.randn(1, 2, ORDER, 4, 5)
    for g, h in itertools.product(range(ORDER), repeat=2):
        assert torch.equal(
            transform_features(transform_features(features, h), g), transform_features(features, PRODUCT[g][h])
        )


def test_the_convolutions_are_the_sums_of_their_definition():
    """Lifting and group convolution against the double sum over pixels and symmetries, pixel by pixel."""
    torch.manual_seed(0)
    side = 4
    lifting, convolution = Lifting(2, 3).double(), GroupConv(3, 2).double()
    maps = torch.randn(1, 2, side, side, dtype=torch.float64)
    with torch.no_grad():
        features = lifting(maps)
        out = convolution(features)
        # Offsets about the middle of the kernel, as (row, column); a symmetry moves offset d to g(d).
        offsets = list(itertools.product((-1, 0, 1), repeat=2))

        def moved(g, d):
            mark = torch.zeros(3, 3)
            mark[d[0] + 1, d[1] + 1] = 1
            row, column = transform(mark, g).nonzero()[0].tolist()
            return row - 1, column - 1

        lifted, convolved = torch.zeros_like(features), torch.zeros_like(out)
        for g, i, j, d in itertools.product(range(ORDER), range(side), range(side), offsets):
            y = (i + d[0], j + d[1])
            if not (0 <= y[0] < side and 0 <= y[1] < side):
                continue
            back = moved(INVERSE[g], d)
            lifted[0, :, g, i, j] += lifting.weight[:, :, back[0] + 1, back[1] + 1] @ maps[0, :, y[0], y[1]]
            for h in range(ORDER):
                kernel = convolution.weight[:, :, PRODUCT[INVERSE[g]][h], back[0] + 1, back[1] + 1]
                convolved[0, :, g, i, j] += kernel @ features[0, :, h, y[0], y[1]]
    torch.testing.assert_close(features, lifted, rtol=0, atol=EXACT)
    torch.testing.assert_close(out, convolved, rtol=0, atol=EXACT)


@pytest.mark.parametrize("size", SIZES)
def test_every_layer_is_equivariant(size):
    torch.manual_seed(1)
    maps = torch.randn(2, 2, *size, dtype=torch.float64)
    features = torch.randn(2, 4, ORDER, *size, dtype=torch.float64)
    lifting = Lifting(2, 3).double()
    layers = {
        "convolution": GroupConv(4, 3).double(),
        "wide convolution": GroupConv(4, 3, kernel=5).double(),
        "norm": randomise(Norm(4)),
        "pool": pool,
        "level": randomise(Level(4, 6, False)),
    }
    for h in range(ORDER):
        got, wanted = lifting(transform(maps, h)), transform_features(lifting(maps), h)
        torch.testing.assert_close(got, wanted, rtol=0, atol=EXACT)
        for name, layer in layers.items():
            got, wanted = layer(transform_features(features, h)), transform_features(layer(features), h)
            torch.testing.assert_close(got, wanted, rtol=0, atol=EXACT, msg=lambda said, name=name: f"{name}: {said}")


@pytest.mark.parametrize("domain_norm", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (31, 31), (18, 18), (25, 36)])
def test_features_are_the_same_for_all_views(size, domain_norm):
    """In float64 at 1e-12; in float32 to 1e-5 of features of order 1 (ten layers of rounding at 1e-7, sums of 500)."""
    torch.manual_seed(2)
    encoder = randomise(D4CNN(2, width=4, depth=3, domain_norm=domain_norm))
    maps = torch.randn(3, 2, *size, dtype=torch.float64)
    with torch.no_grad():
        encoder.train()
        for _ in range(30):  # running statistics of these maps: what began as 0 and 1 is 0.04 of them
            encoder(maps, TARGET)
        encoder.eval()
        features = encoder(maps, TARGET)
        scale = float(features.abs().max())
        assert features.shape == (3, encoder.width)
        assert float(features.std(0).max()) > 1e-3 * scale  # invariant, yet different for different maps
        for h in range(ORDER):
            torch.testing.assert_close(encoder(transform(maps, h), TARGET), features, rtol=0, atol=EXACT * scale)
        encoder.float()
        single = encoder(maps.float(), TARGET)
        for h in range(ORDER):
            got = encoder(transform(maps.float(), h), TARGET)
            torch.testing.assert_close(got, single, rtol=0, atol=1e-5 * scale)


def test_training_statistics_do_not_know_the_orientation():
    """A batch, each map in an orientation of its own, leaves the same running statistics and gradients."""
    torch.manual_seed(3)
    maps = torch.randn(ORDER, 1, 15, 15, dtype=torch.float64)
    turned = torch.stack([transform(one, h) for h, one in enumerate(maps)])
    encoder = D4CNN(1, width=2, depth=2, domain_norm=True).double().train()
    start = {key: value.clone() for key, value in encoder.state_dict().items()}
    found = []
    for batch in (maps, turned):
        encoder.load_state_dict(start)
        encoder.zero_grad()
        encoder(batch).square().sum().backward()
        gradients = {name: parameter.grad.clone() for name, parameter in encoder.named_parameters()}
        found.append({**{key: value.clone() for key, value in encoder.state_dict().items()}, **gradients})
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=0, atol=1e-10, msg=key)  # gradients are of order 100


def test_pooling_keeps_constants_and_totals():
    """A constant stays itself on all sides; on even sides the mean stays as well."""
    for size in SIZES:
        assert torch.equal(pool(torch.ones(1, 2, ORDER, *size)).unique(), torch.ones(1))
    features = torch.randn(1, 2, ORDER, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(pool(features).mean(), features.mean())
    assert pool(torch.ones(2, 3, 1, 1)).shape == (2, 3, 1, 1)


def test_a_kernel_without_a_middle_is_refused():
    with pytest.raises(SkyshiftError, match="odd number"):
        Lifting(1, 2, kernel=4)


def test_blocks_hold_every_parameter_once():
    encoder = D4CNN(1, width=2, depth=2)
    held = [id(parameter) for block in encoder.blocks() for parameter in block.parameters()]
    assert sorted(held) == sorted(id(parameter) for parameter in encoder.parameters())
