"""Batch normalisation of each domain's own, against torch's layers, in threads and on two processes."""

import copy
import os
import runpy
import subprocess
import sys
import threading

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.layers import BatchNormAct2d
from torch import nn

from skyshift.adapt.classifier import SOURCE, TARGET, Classifier
from skyshift.adapt.domain_norm import DomainBatchNorm2d, in_domain, split_batch_norm
from skyshift.adapt.encoders import SmallCNN, TimmEncoder
from skyshift.errors import SkyshiftError


def maps_of(domain, number=0, channels=3):
    generator = torch.Generator().manual_seed(10 * domain + number)
    return (1 + domain) * torch.randn(4, channels, 5, 6, generator=generator) + domain


def learned(layer):
    """A layer with something in all of its tensors."""
    generator = torch.Generator().manual_seed(5)
    for value in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
        value.data.uniform_(0.5, 1.5, generator=generator)
    return layer


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("layer", [nn.BatchNorm2d, BatchNormAct2d])
def test_it_is_a_layer_of_torch_for_each_domain(layer, momentum):
    """Outputs, gradients and running statistics of two torch layers, bit for bit, over three steps and evaluation."""
    first = learned(layer(3, momentum=momentum))
    each = [first, copy.deepcopy(first)]
    network = nn.Sequential(copy.deepcopy(first))
    assert split_batch_norm(network) == 1
    for step in range(3):
        for domain in (SOURCE, TARGET):
            maps = maps_of(domain, step)
            wanted = each[domain](maps)
            with in_domain(domain):
                got = network(maps)
            assert torch.equal(got, wanted)
            wanted.square().sum().backward()
            got.square().sum().backward()
    for domain in (SOURCE, TARGET):
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(getattr(network[0], name)[domain], getattr(each[domain], name))
        for name in ("weight", "bias"):
            assert torch.equal(getattr(network[0], name).grad[domain], getattr(each[domain], name).grad)
    network.eval()
    for domain in (SOURCE, TARGET):
        with in_domain(domain):
            assert torch.equal(network(maps_of(domain, 9)), each[domain].eval()(maps_of(domain, 9)))


def test_the_other_domain_is_untouched():
    layer = learned_split(own_affine=True)
    before = copy.deepcopy(layer.state_dict())
    with in_domain(TARGET):
        layer(maps_of(TARGET)).square().sum().backward()
    for name, value in layer.state_dict().items():
        assert torch.equal(value[SOURCE], before[name][SOURCE])
    assert not torch.equal(layer.running_mean[TARGET], before["running_mean"][TARGET])
    assert not layer.weight.grad[SOURCE].any()
    assert not layer.bias.grad[SOURCE].any()
    assert layer.weight.grad[TARGET].all()


def learned_split(own_affine):
    network = nn.Sequential(learned(nn.BatchNorm2d(3)))
    split_batch_norm(network, own_affine=own_affine)
    return network[0]


def test_a_shared_scale_gets_the_gradients_of_both_domains():
    shared, own = learned_split(own_affine=False), learned_split(own_affine=True)
    for layer in (shared, own):
        for domain in (SOURCE, TARGET):
            with in_domain(domain):
                layer(maps_of(domain)).pow(3).sum().backward()
    assert shared.weight.shape == (1, 3)
    torch.testing.assert_close(shared.weight.grad[0], own.weight.grad.sum(0))


def test_both_domains_come_out_standardised():
    """Mean 0 and variance 1 of each, where one layer for both would leave them apart."""
    layer = DomainBatchNorm2d(3, momentum=None)
    for step in range(20):
        for domain in (SOURCE, TARGET):
            with in_domain(domain):
                layer(maps_of(domain, step))
    layer.eval()
    for domain in (SOURCE, TARGET):
        with in_domain(domain), torch.no_grad():
            out = torch.cat([layer(maps_of(domain, step)) for step in range(20)])
        assert abs(float(out.mean())) < 1e-3  # the batches that the running means are made of, of one size
        # Running variances are those within batches; means of 120 pixels scatter by 1/120 of the variance.
        assert abs(float(out.var()) - 1) < 0.02


@pytest.mark.parametrize(("name", "layers"), [("resnet18", 20), ("densenet121", 121), ("efficientnet_b0", 49)])
def test_networks_of_timm_say_the_same_afterwards(name, layers):
    """Every layer is changed, and with the statistics it had the network is what it was, in either domain."""
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=0, in_chans=2).eval()
    maps = torch.randn(2, 2, 64, 64)
    with torch.no_grad():
        wanted = network(maps)
        assert split_batch_norm(network) == layers
        assert not any(type(part) in (nn.BatchNorm2d, BatchNormAct2d) for part in network.modules())
        for domain in (SOURCE, TARGET):
            with in_domain(domain):
                assert torch.equal(network(maps), wanted)
    assert split_batch_norm(network) == 0


def test_a_layer_in_two_places_stays_one():
    layer = nn.BatchNorm2d(3)
    network = nn.Sequential(layer, nn.Sequential(layer), layer)
    assert split_batch_norm(network) == 1
    assert network[0] is network[1][0] is network[2]


def test_state_goes_round():
    torch.manual_seed(0)
    encoder = TimmEncoder(1, "resnet18", domain_norm=True)
    for domain in (SOURCE, TARGET):
        encoder(maps_of(domain, channels=1).repeat(1, 1, 8, 8), domain)
    other = TimmEncoder(1, "resnet18", domain_norm=True)
    other.load_state_dict(encoder.state_dict())
    twin = copy.deepcopy(encoder)
    maps = torch.randn(2, 1, 32, 32)
    outputs = [encoder.eval()(maps, domain) for domain in (SOURCE, TARGET)]
    assert not torch.equal(*outputs)
    for copied in (other, twin):
        for domain in (SOURCE, TARGET):
            assert torch.equal(copied.eval()(maps, domain), outputs[domain])


def test_threads_do_not_see_each_others_domain():
    """Two threads in lock step within one network, one a domain: each gets what it gets alone."""
    barrier = threading.Barrier(2, timeout=30)

    class Meet(nn.Module):
        def forward(self, maps):
            barrier.wait()  # both have set their domain, neither has normalised
            return maps

    layer = learned_split(own_affine=True).eval()
    layer.running_mean[TARGET] += 3
    network, found = nn.Sequential(Meet(), layer), {}

    def work(domain):
        with in_domain(domain):
            found[domain] = network(maps_of(0))

    threads = [threading.Thread(target=work, args=(domain,)) for domain in (SOURCE, TARGET)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for domain in (SOURCE, TARGET):
        with in_domain(domain):
            assert torch.equal(found[domain], layer(maps_of(0)))
    assert not torch.equal(found[SOURCE], found[TARGET])


def test_nobody_has_said_of_which_domain():
    layer = DomainBatchNorm2d(3)
    with pytest.raises(SkyshiftError, match="nobody has said of which"):
        layer(maps_of(0))
    with pytest.raises(RuntimeError, match="on the way"), in_domain(TARGET):
        raise RuntimeError("on the way")
    with pytest.raises(SkyshiftError, match="nobody has said of which"):  # what failed has left no domain behind
        layer(maps_of(0))
    with in_domain(2), pytest.raises(SkyshiftError, match="domain 2"):
        layer(maps_of(0))
    with pytest.raises(SkyshiftError, match="track_running_stats"):
        split_batch_norm(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)))


def test_frozen_layers_stay_frozen():
    network = nn.Sequential(nn.BatchNorm2d(3)).requires_grad_(False).eval()
    split_batch_norm(network)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not network[0].training


def test_half_precision_is_that_of_torch():
    layer, torchs = learned_split(own_affine=True), learned(nn.BatchNorm2d(3))
    with torch.autocast("cpu", torch.bfloat16), in_domain(TARGET):
        got, wanted = layer(maps_of(0).bfloat16()), torchs(maps_of(0).bfloat16())
    assert got.dtype == wanted.dtype == torch.bfloat16
    assert torch.equal(got, wanted)


TRAIN = """
import sys
import torch
from safetensors.torch import save_file
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from skyshift.adapt.classifier import SOURCE, TARGET, Classifier
from skyshift.adapt.encoders import SmallCNN, TimmEncoder

def train(folder, rank, processes):
    torch.set_num_threads(1)
    made = {
        "small": lambda: SmallCNN(1, width=4, depth=2, domain_norm=True),
        "timm": lambda: TimmEncoder(1, "test_resnet"),
        "timm_domains": lambda: TimmEncoder(1, "test_resnet", domain_norm=True),
    }
    for name, make in made.items():
        torch.manual_seed(0)
        network = Classifier(make(), 2).double()
        wrapped = DistributedDataParallel(network) if processes > 1 else network
        optimizer = torch.optim.SGD(network.parameters(), 0.01)
        for step in range(3):
            maps = torch.randn(2, 8, 1, 32, 32, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
            maps[1] = 2 * maps[1] + 1
            share = maps[:, rank * 8 // processes : (rank + 1) * 8 // processes]
            loss = wrapped(share[0], SOURCE)[1].square().mean()
            if step != 1:  # one step does not see the target
                loss = loss + wrapped(share[1], TARGET)[1].square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        state = {key: value.contiguous() for key, value in network.state_dict().items()}
        save_file(state, f"{folder}/{name}_{processes}_{rank}.safetensors")

if __name__ == "__main__":
    dist.init_process_group("gloo", f"file://{sys.argv[1]}/meeting", rank=int(sys.argv[2]), world_size=2)
    assert dist.get_world_size() == 2
    train(sys.argv[1], int(sys.argv[2]), 2)
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    """Weights and running statistics after three steps with both domains; one step sees the source alone.

    In float64: three steps through some twenty layers, whose sums in another order differ by 1e-16 of their terms.
    """
    script = tmp_path / "script.py"
    script.write_text(TRAIN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path), str(rank)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    for rank in ranks:
        _, said = rank.communicate(timeout=240)
        assert rank.returncode == 0, said[-3000:]
    runpy.run_path(str(script))["train"](tmp_path, 0, 1)
    for name in ("small", "timm", "timm_domains"):
        wanted = load_file(tmp_path / f"{name}_1_0.safetensors")
        for rank in (0, 1):
            got = load_file(tmp_path / f"{name}_2_{rank}.safetensors")
            assert got.keys() == wanted.keys()
            for key, value in wanted.items():
                torch.testing.assert_close(got[key], value, rtol=1e-9, atol=1e-9, msg=f"{name} {key}")


def test_the_whole_classifier_takes_a_domain():
    torch.manual_seed(0)
    classifier = Classifier(SmallCNN(1, width=4, depth=2, domain_norm=True), 3)
    assert classifier.encoder.domains
    for domain in (SOURCE, TARGET):
        classifier(maps_of(domain, channels=1), domain)
    one, other = (classifier.eval()(maps_of(0, channels=1), domain)[1] for domain in (SOURCE, TARGET))
    assert not torch.equal(one, other)
    assert not SmallCNN(1).domains
