"""PatchNCE against its formula and limits; features of the generators' layers; the projection head."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from skyshift.errors import SkyshiftError
from skyshift.translate.losses.contrastive import patch_nce, sample_patches
from skyshift.translate.networks.projection import Projection
from skyshift.translate.networks.resnet import ResNet
from skyshift.translate.networks.unet import UNet


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


def written_out(query, key, temperature):
    """The loss entry by entry, cosine by cosine, in float64."""
    query, key = query.double().numpy(), key.double().numpy()
    losses = []
    for q, k in zip(query, key, strict=True):
        for i in range(len(q)):
            cosines = [q[i] @ other / np.linalg.norm(q[i]) / np.linalg.norm(other) for other in k]
            exponentials = np.exp(np.array(cosines) / temperature)
            losses.append(-np.log(exponentials[i] / exponentials.sum()))
    return np.mean(losses)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_patch_nce_is_its_formula(temperature):
    query, key = unit(3, 7, 16), unit(3, 7, 16)
    wanted = written_out(query, key, temperature)
    assert float(patch_nce(query, key, temperature)) == pytest.approx(wanted, rel=1e-5)  # float32
    with torch.autocast("cpu", torch.bfloat16):
        assert float(patch_nce(query, key, temperature)) == pytest.approx(wanted, rel=1e-5)


def test_features_that_say_nothing_have_the_loss_of_guessing():
    n = 50
    same = unit(1, 1, 8).expand(2, n, 8)
    assert float(patch_nce(unit(2, n, 8), same)) == pytest.approx(math.log(n), rel=1e-6)
    # Random ones in d dimensions: log N + ½σ² for logits of variance σ² = 1/(d τ²), here 0.025.
    loss = float(patch_nce(unit(8, n, 8192), unit(8, n, 8192)))
    assert loss == pytest.approx(math.log(n) + 0.5 / (8192 * 0.07**2), abs=4 * 0.16 / math.sqrt(8 * n))


@pytest.mark.parametrize("temperature", [0.07, 0.3])
def test_aligned_features_have_the_loss_in_closed_form(temperature):
    """Orthogonal keys equal to their queries: log(1 + (N - 1) exp(-1/τ)), which goes to 0 with τ."""
    keys = torch.eye(20)[None]
    wanted = math.log1p(19 * math.exp(-1 / temperature))
    # float32 knows logits of 1/τ to half of 1e-6.
    assert float(patch_nce(keys, keys, temperature)) == pytest.approx(wanted, rel=1e-6, abs=5e-7)
    assert wanted < (1e-4 if temperature == 0.07 else 0.6)


def test_only_queries_get_a_gradient():
    """∂L/∂q_i = (Σ_j p_ij k_j - k_i) / (τ n): towards its own key, away from those it resembles."""
    query, key = unit(2, 6, 5).requires_grad_(), unit(2, 6, 5).requires_grad_()
    patch_nce(query, key, 0.5).backward()
    assert key.grad is None
    share = (query @ key.transpose(1, 2) / 0.5).softmax(-1)
    torch.testing.assert_close(query.grad, ((share @ key - key) / (0.5 * 12)).detach())


def test_patches_are_the_features_at_their_places():
    features = torch.randn(2, 3, 4, 5)
    patches = sample_patches(features, torch.tensor([7, 0, 19]))
    assert patches.shape == (2, 3, 3)
    torch.testing.assert_close(patches[1, 0], features[1, :, 1, 2], rtol=0, atol=0)
    torch.testing.assert_close(patches[0, 2], features[0, :, 3, 4], rtol=0, atol=0)


def test_a_projection_gives_unit_vectors_with_weights_for_each_layer():
    head = Projection([3, 8], 16)
    features = [torch.randn(2, 10, 3), 100 * torch.randn(2, 7, 8)]
    projected = head(features)
    assert [p.shape for p in projected] == [(2, 10, 16), (2, 7, 16)]
    for p in projected:
        torch.testing.assert_close(p.norm(dim=-1), torch.ones(p.shape[:-1]))
    assert {p.shape[1] for p in head.parameters() if p.ndim == 2} == {3, 8, 16}
    with pytest.raises(SkyshiftError, match="dimensions is 0; it must be at least 1"):
        Projection([3], 0)


# --- features of the generators' layers

RESNET = {"width": 4, "blocks": 2, "downsamplings": 2}
UNET = {"width": 4, "depth": 2}


def outputs_of(net, modules, x):
    """What some modules give on the way through the whole network."""
    seen = []
    hooks = [module.register_forward_hook(lambda _m, _i, output: seen.append(output)) for module in modules]
    net(x)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("size", [(16, 16), (13, 9)])
@pytest.mark.parametrize("norm", ["none", "instance"])
def test_features_are_those_on_the_way_to_the_translation(norm, size):
    x = torch.randn(2, 3, *size)
    resnet, unet = ResNet(3, 1, norm=norm, **RESNET), UNet(3, 1, norm=norm, **UNET)
    # ResNet: the activation of the first and of each halving convolution, then each block.
    for net, modules in ((resnet, [resnet.layers[i] for i in (2, 5, 8, 9, 10)]), (unet, list(unet.encoder))):
        wanted = outputs_of(net, modules, x)
        count = len(net.feature_channels)
        assert count == len(wanted) + 1
        features = net(x, range(count))
        assert tuple(f.shape[1] for f in features) == net.feature_channels
        for found, entry in zip(features[1:], wanted, strict=True):
            torch.testing.assert_close(found, entry, rtol=0, atol=0)
        middle = tuple((large - small) // 2 for large, small in zip(features[0].shape[-2:], size, strict=True))
        rows, columns = (slice(start, start + n) for start, n in zip(middle, size, strict=True))
        torch.testing.assert_close(features[0][..., rows, columns], x, rtol=0, atol=0)  # the padded maps
        few = net(x, [count - 1, 1])  # any of them, in the order asked for
        assert torch.equal(few[0], features[-1])
        assert torch.equal(few[1], features[1])


@pytest.mark.parametrize(
    ("net", "layers", "message"),
    [
        (ResNet(1, 1, **RESNET), [0, 6], "there is no feature layer 6: this ResNet has the layers 0 to 5"),
        (UNet(1, 1, **UNET), [-1], "there is no feature layer -1: this U-Net has the layers 0 to 3"),
        (UNet(1, 1, **UNET), [], "no feature layer is named: this U-Net has the layers 0 to 3"),
    ],
)
def test_layers_that_do_not_exist_are_refused(net, layers, message):
    with pytest.raises(SkyshiftError, match=message):
        net(torch.zeros(1, 1, 8, 8), layers)
