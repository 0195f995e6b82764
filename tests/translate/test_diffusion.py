"""Diffusion: exact denoisers against closed forms and diffusers, its objective, guidance, runs, and bad input."""

import subprocess
import sys
from typing import get_args

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import set_seed
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import nn

from skyshift.checkpoint import latest
from skyshift.datasets.loading import Split
from skyshift.datasets.store import MapStore
from skyshift.engine import Hooks, Trainer, TrainingConfig
from skyshift.errors import SkyshiftError
from skyshift.translate.data import DataConfig, TranslationData
from skyshift.translate.methods.base import Noise
from skyshift.translate.methods.diffusion import Diffusion, Sampler
from skyshift.translate.methods.noise_schedule import (
    Prediction,
    Schedule,
    add_noise,
    clean_estimate,
    min_snr_weight,
    sampling_times,
    signal_shares,
    true_prediction,
)
from skyshift.translate.methods.standardise import Standardise
from skyshift.translate.networks.diffusion_unet import DiffusionUNet
from skyshift.translate.train import main as train_command
from skyshift.translate.translator import Translator

MEAN, DEVIATION = 0.5, 0.2
PIXELS = 100
SCHEDULES, PREDICTIONS, SAMPLERS = get_args(Schedule), get_args(Prediction), get_args(Sampler)


class Exact(nn.Module):
    """The best prediction for independent pixels, from the mean of y given x_t, the source and ᾱ."""

    def __init__(self, kind, shares, clean_mean):
        super().__init__()
        self.kind, self.shares, self.clean_mean = kind, shares, clean_mean

    def forward(self, x, t):
        share = self.shares[(t * len(self.shares) / 1000).round().long()].view(-1, 1, 1, 1)
        noisy, rest = x[:, :1], x[:, 1:]
        clean = self.clean_mean(noisy, rest, share)
        noise = (noisy - share.sqrt() * clean) / (1 - share).sqrt()
        return true_prediction(self.kind, clean, noise, share)


def gaussian(mean, deviation):
    """Mean of y ~ N(mean, deviation²) given x_t."""

    def clean_mean(noisy, rest, share):
        gain = share.sqrt() * deviation**2 / (share * deviation**2 + 1 - share)
        centre = mean(rest) if callable(mean) else mean
        return centre + gain * (noisy - share.sqrt() * centre)

    return clean_mean


def exact(clean_mean, *, schedule="linear", prediction="v_prediction", zero_terminal_snr=False, **options):
    shares = signal_shares(schedule, options.get("train_steps", 1000), zero_terminal_snr)
    return Diffusion(
        1,
        1,
        denoiser=lambda seen, target: Exact(prediction, shares, clean_mean),
        schedule=schedule,
        prediction=prediction,
        zero_terminal_snr=zero_terminal_snr,
        **options,
    ).eval()


@torch.no_grad()
def draw(method, calls=None, pixels=PIXELS, maps=1):
    return method.translate(torch.zeros(maps, 1, pixels, pixels), calls=calls)


# -- samplers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_return_gaussian_data(sampler, prediction, schedule):
    """Ten thousand pixels: their mean errs by 0.002, their deviation by 0.7 %; the rest is what few steps cost."""
    method = exact(gaussian(MEAN, DEVIATION), schedule=schedule, prediction=prediction, sampler=sampler, calls=1000)
    least = {"ddim": 50, "ddpm": 100}.get(sampler, 10)
    for calls in sorted({least, 20, 50}):
        if calls < least:
            with pytest.raises(SkyshiftError, match=f"at least {least}. Take sde_dpm"):
                draw(method, calls)
            continue
        maps = draw(method, calls)
        assert abs(maps.mean() - MEAN) < 0.01
        assert abs(maps.std() / DEVIATION - 1) < 0.07, (calls, maps.std())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_return_gaussian_data_in_a_thousand_steps(sampler):
    """Every schedule and prediction with one sampler or two: what they share is tested above."""
    schedule = SCHEDULES[SAMPLERS.index(sampler) % 3]
    prediction = PREDICTIONS[(SAMPLERS.index(sampler) + 1) % 3]
    method = exact(gaussian(MEAN, DEVIATION), schedule=schedule, prediction=prediction, sampler=sampler, calls=1000)
    maps = draw(method)
    assert abs(maps.mean() - MEAN) < 0.01
    assert abs(maps.std() / DEVIATION - 1) < 0.025


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_samplers_start_without_signal_where_asked(sampler, prediction):
    method = exact(gaussian(MEAN, DEVIATION), prediction=prediction, sampler=sampler, zero_terminal_snr=True, calls=100)
    assert sampling_times(method.alphas_cumprod, 10, True)[0] == 999
    maps = draw(method)
    assert abs(maps.mean() - MEAN) < 0.01
    assert abs(maps.std() / DEVIATION - 1) < 0.07


def test_without_terminal_signal_the_mean_of_far_data_is_kept():
    """A remaining √ᾱ_T = 0.028 of data at 30 is 0.8 σ of the starting noise, which Lin et al. 2023 remove."""
    shift = {}
    for zero in (False, True):
        method = exact(gaussian(30.0, 1.0), schedule="scaled_linear", sampler="unipc", zero_terminal_snr=zero)
        shift[zero] = float(draw(method, 100).mean()) - 30.0
    assert abs(shift[True]) < 0.05
    assert shift[False] < -0.5


@pytest.mark.parametrize("times", [100, 250])
def test_a_network_of_fewer_times_serves_as_well(times):
    method = exact(gaussian(MEAN, DEVIATION), train_steps=times, sampler="dpm_solver++", calls=20)
    assert method.alphas_cumprod[-1] < 5e-5
    maps = draw(method)
    assert abs(maps.mean() - MEAN) < 0.01
    assert abs(maps.std() / DEVIATION - 1) < 0.07


def test_sampling_times_are_distinct_and_even_in_log_signal_to_noise():
    for schedule in SCHEDULES:
        shares = signal_shares(schedule, 1000)
        for steps in (1, 2, 7, 50, 333, 999, 1000):
            times = sampling_times(shares, steps)
            assert len(times) == steps
            assert (times[1:] < times[:-1]).all()
            assert 0 <= times[-1] <= times[0] <= 999
        level = torch.logit(shares[sampling_times(shares, 10)].double()) / 2
        gaps = level[1:-1] - level[:-2]  # rounding is coarse at the last, t = 0
        assert gaps.std() < 0.15 * gaps.mean()
        assert shares[sampling_times(shares, 50)[0]] > 3e-5  # else 1/√ᾱ makes errors of ε grow (20,000 for the cosine)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_first_order_samplers_are_those_of_diffusers(sampler, prediction, monkeypatch):
    """On evenly spaced times (which DDIMScheduler needs) with the same noise: equal to float32 rounding."""
    steps = 200
    method = exact(gaussian(MEAN, DEVIATION), prediction=prediction, sampler=sampler, calls=steps)
    even = torch.arange(0, 1000, 1000 // steps).flip(0)
    monkeypatch.setattr("skyshift.translate.methods.diffusion.sampling_times", lambda *_: even)
    options = {"prediction_type": prediction, "clip_sample": False, "timestep_spacing": "leading"}
    if sampler == "ddim":
        scheduler = DDIMScheduler(**options, set_alpha_to_one=True)
    else:
        scheduler = DDPMScheduler(**options, variance_type="fixed_small")
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == even.tolist()
    noise = Noise([3, 4])
    x = noise.normal(1, 8, 8)
    source = torch.zeros(2, 1, 8, 8)
    for time in scheduler.timesteps.tolist():
        predicted = method.predict(x, source, time)
        if sampler == "ddim":
            x = scheduler.step(predicted, time, x).prev_sample
            continue
        fresh = noise.normal(1, 8, 8)
        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, fresh=fresh, **__: fresh)
        x = scheduler.step(predicted, time, x).prev_sample
    torch.testing.assert_close(method.translate(source, noise=Noise([3, 4])), x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sampler", ["dpm_solver++", "unipc"])
def test_times_of_diffusers_fall_short_at_few_steps(sampler):
    """What the spacing in log-signal-to-noise is for: with ten trailing times the deviation is halved."""
    kind = UniPCMultistepScheduler if sampler == "unipc" else DPMSolverMultistepScheduler
    scheduler = kind(prediction_type="sample", timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    method = exact(gaussian(MEAN, DEVIATION), prediction="sample", sampler=sampler)
    x = Noise([0]).normal(1, PIXELS, PIXELS)
    for time in scheduler.timesteps:
        x = scheduler.step(method.predict(x, torch.zeros_like(x), int(time)), time, x).prev_sample
    assert x.std() < 0.7 * DEVIATION
    assert abs(draw(method, 10).std() / DEVIATION - 1) < 0.07


def bimodal(noisy, rest, share):
    """Mean of y, ±1 with deviation 0.1, +1 with the probability that the source says."""
    variance = share * 0.01 + 1 - share
    log_odds = torch.logit(rest[:, :1]) + 2 * share.sqrt() * noisy / variance
    upper = torch.sigmoid(log_odds)
    gain = share.sqrt() * 0.01 / variance
    means = [mode + gain * (noisy - share.sqrt() * mode) for mode in (1.0, -1.0)]
    return upper * means[0] + (1 - upper) * means[1]


@pytest.mark.parametrize(("sampler", "calls"), [("dpm_solver++", 100), ("sde_dpm_solver++", 100), ("ddpm", 250)])
def test_a_posterior_of_two_modes_is_drawn_with_its_weights(sampler, calls):
    """The weights of 10,000 pixels err by 0.005; a finite number of steps moves them by up to 0.02 more."""
    method = exact(bimodal, sampler=sampler, calls=calls)
    chances = (0.1, 0.5, 0.8)
    source = torch.tensor(chances).view(3, 1, 1, 1).expand(3, 1, PIXELS, PIXELS)
    with torch.no_grad():
        maps = method.translate(source)
    for chance, drawn in zip(chances, maps, strict=True):
        assert abs((drawn > 0).float().mean() - chance) < 0.035
        assert abs((drawn.abs() - 1).mean()) < 0.02
        assert abs(drawn[drawn > 0].std() / 0.1 - 1) < 0.1


# -- guidance ---------------------------------------------------------------------------------------------------


def told(rest):
    """Channels of the network beside the noisy map: the source and whether there is one."""
    return torch.where(rest[:, 1:2] > 0, rest[:, :1], 0.2)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_guidance_moves_a_gaussian_as_far_as_it_says(prediction):
    """Scores of N(a, σ²) and N(b, σ²) extrapolated by w are the score of N(b + w (a - b), σ²), at every time."""
    weight = 3.0
    method = exact(
        gaussian(told, DEVIATION), prediction=prediction, drop_source=0.1, guidance=weight, sampler="unipc", calls=60
    )
    noisy = Noise([1]).normal(1, 8, 8)
    source = torch.full_like(noisy, 0.7)
    wanted = exact(gaussian(0.2 + weight * 0.5, DEVIATION), prediction=prediction)
    for time in (0, 400, 999):
        torch.testing.assert_close(
            method.predict(noisy, source, time), wanted.predict(noisy, source, time), rtol=1e-4, atol=1e-4
        )
    with torch.no_grad():
        maps = method.translate(torch.full((1, 1, PIXELS, PIXELS), 0.7))
    assert abs(maps.mean() - 1.7) < 0.01
    assert abs(maps.std() / DEVIATION - 1) < 0.07


class Counting(DiffusionUNet):
    """Counts its calls."""

    count = 0

    def forward(self, x, t):
        self.count += 1
        assert t.shape == (len(x),)
        return super().forward(x, t)


def tiny(kind=DiffusionUNet, sources=1, targets=1, **options):
    options = {"calls": 10, **options}
    method = Diffusion(sources, targets, denoiser=lambda seen, target: kind(seen, target, width=4, depth=1), **options)
    torch.manual_seed(1)
    nn.init.normal_(method.denoiser.network.conv_out.weight, std=0.1)  # zero before training
    return method.eval()


@pytest.mark.parametrize(("guidance", "calls", "count"), [(1.0, 10, 10), (2.0, 10, 10), (2.0, 11, 10), (0.0, 6, 6)])
def test_calls_are_network_calls(guidance, calls, count):
    method = tiny(Counting, guidance=guidance, drop_source=0.2)
    method.translate(torch.rand(2, 1, 8, 8), calls=calls)
    assert method.denoiser.count == count


def test_a_hidden_source_is_not_seen():
    method = tiny(drop_source=0.2)
    a, b = torch.rand(2, 3, 1, 8, 8)
    noisy = torch.rand(3, 1, 8, 8)
    kept = torch.tensor([1.0, 0.0, 1.0])
    first, second = method._seen(noisy, a, kept), method._seen(noisy, b, kept)
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], second[0])
    assert first[:, 2].mean((1, 2)).tolist() == [1.0, 0.0, 1.0]


# -- draws ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ddpm", "dpm_solver++", "sde_dpm_solver++", "unipc"])
def test_a_draw_depends_on_its_seed_alone(sampler):
    method = tiny(sampler=sampler, sources=2, targets=3, train_steps=100, calls=100 if sampler == "ddpm" else 6)
    source = torch.rand(3, 2, 12, 10)
    with torch.no_grad():
        together = method.translate(source, noise=Noise([5, 6, 7]))
        alone = method.translate(source[1:2], noise=Noise([6]))
        again = method.translate(source[1:2], noise=Noise([8]))
    assert together.shape == (3, 3, 12, 10)
    assert together.dtype == torch.float32
    # Sums in another order in convolutions of another batch, carried through all steps.
    torch.testing.assert_close(together[1:2], alone, rtol=1e-3, atol=1e-3)
    assert (alone - again).abs().mean() > 0.05


# -- training ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_noise_and_predictions_are_those_of_diffusers(schedule):
    scheduler = DDPMScheduler(beta_schedule=schedule)
    shares = signal_shares(schedule, 1000)
    torch.testing.assert_close(shares, scheduler.alphas_cumprod, rtol=2e-4, atol=1e-9)  # theirs is a float32 product
    clean, noise = torch.randn(2, 4, 1, 5, 5)
    times = torch.tensor([0, 10, 500, 900])
    share = shares[times].view(-1, 1, 1, 1)
    noisy = add_noise(clean, noise, share)
    torch.testing.assert_close(noisy, scheduler.add_noise(clean, noise, times), rtol=1e-3, atol=1e-4)
    velocity = scheduler.get_velocity(clean, noise, times)
    torch.testing.assert_close(true_prediction("v_prediction", clean, noise, share), velocity, rtol=1e-3, atol=1e-4)
    for kind in PREDICTIONS:
        back = clean_estimate(kind, true_prediction(kind, clean, noise, share), noisy, share)
        torch.testing.assert_close(back, clean, rtol=1e-3, atol=1e-3)  # ε of t = 900 is divided by √ᾱ of about 0.02


def test_zero_terminal_snr_is_that_of_diffusers():
    theirs = DDIMScheduler(beta_schedule="scaled_linear", rescale_betas_zero_snr=True).alphas_cumprod
    ours = signal_shares("scaled_linear", 1000, True)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("min_snr", [0.0, 5.0])
def test_the_loss_of_the_exact_denoiser_is_the_least_there_is(prediction, min_snr):
    """Var[y | x_t] = σ² (1-ᾱ) / (ᾱ σ² + 1 - ᾱ); of ε times SNR, of v times SNR + 1; averaged over all times."""
    method = exact(gaussian(MEAN, DEVIATION), prediction=prediction, min_snr=min_snr, target_mean=0, target_deviation=1)
    share = method.alphas_cumprod.double()
    ratio = share / (1 - share)
    left = DEVIATION**2 * (1 - share) / (share * DEVIATION**2 + 1 - share)
    factor = {"epsilon": ratio, "v_prediction": ratio + 1, "sample": torch.ones_like(ratio)}[prediction]
    weight = ratio.clamp(max=min_snr) if min_snr else factor
    torch.manual_seed(0)
    batch = {"source": torch.zeros(20000, 1, 4, 4), "target": MEAN + DEVIATION * torch.randn(20000, 1, 4, 4)}
    loss, parts = method.loss("denoiser", {"denoiser": method.denoiser}, batch, {})
    # 20,000 times drawn evenly: the mean of left · weight errs by under 2 % (weights vary by about their mean or more).
    assert abs(loss / (left * weight).mean() - 1) < 0.04
    assert parts["denoising"] == loss
    torch.testing.assert_close(
        min_snr_weight(prediction, share, 5.0) * factor, ratio.clamp(max=5.0), rtol=1e-9, atol=1e-12
    )


def test_the_physics_of_an_estimate_counts_as_far_as_it_has_signal():
    torch.manual_seed(0)
    method = tiny(target_mean=0.0, target_deviation=1.0)
    batch = {"source": torch.rand(4, 1, 8, 8), "target": torch.rand(4, 1, 8, 8)}
    seen = {}

    def physics(estimate, given):
        seen["estimate"] = estimate
        loss = 10 * (estimate - given["target"]).abs().mean()
        return loss, {"total": loss}

    method.physics = physics
    method.alphas_cumprod.fill_(1e-9)
    loss, parts = method.loss("denoiser", {"denoiser": method.denoiser}, batch, {})
    assert parts["total"] < 1e-6
    method.alphas_cumprod.fill_(0.5)
    loss, parts = method.loss("denoiser", {"denoiser": method.denoiser}, batch, {})
    assert parts["total"] > 0.1
    torch.testing.assert_close(loss, parts["denoising"] + parts["total"])
    assert seen["estimate"].requires_grad


def test_maps_are_standardised_by_the_first_batch_and_no_other():
    scale = Standardise(2)
    first = torch.randn(4, 2, 9, 9) * torch.tensor([3.0, 0.01]).view(1, 2, 1, 1) + 7
    assert torch.equal(scale(first), first)
    scale.measure(first)
    scale.measure(first * 5)
    standard = scale(first)
    torch.testing.assert_close(standard.mean((0, 2, 3)), torch.zeros(2), rtol=0, atol=1e-4)  # 7 / 0.01 · 1e-7
    torch.testing.assert_close(standard.std((0, 2, 3), correction=0), torch.ones(2), rtol=1e-4, atol=0)
    torch.testing.assert_close(scale.undo(standard), first, rtol=1e-5, atol=1e-5)
    copy = Standardise(2)
    copy.load_state_dict(scale.state_dict())
    copy.measure(first * 5)
    assert torch.equal(copy(first), standard)
    flat = Standardise(1)
    flat.measure(torch.full((2, 1, 4, 4), 0.3))
    torch.testing.assert_close(flat(torch.full((2, 1, 4, 4), 0.3)), torch.zeros(2, 1, 4, 4))


TWO = """
import sys, torch
from torch import distributed
from skyshift.translate.methods.standardise import Standardise
folder, rank = sys.argv[1], int(sys.argv[2])
distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
assert distributed.get_world_size() == 2
scale = Standardise(1)
scale.measure(torch.arange(32.0).view(2, 1, 4, 4) + 32 * rank)
torch.testing.assert_close(scale.centre.squeeze(), torch.tensor(31.5))
torch.testing.assert_close(scale.spread.squeeze(), torch.arange(64.0).std(correction=0))
"""


def test_two_processes_standardise_alike(tmp_path):
    """Ranks with different maps agree on the mean and deviation of all of them."""
    ranks = [
        subprocess.Popen([sys.executable, "-c", TWO, str(tmp_path), str(rank)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], errors


# -- the network ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16), (13, 22), (3, 1)])
@pytest.mark.parametrize("attention", [False, True])
def test_the_network_takes_any_size_channels_and_time(size, attention):
    network = DiffusionUNet(3, 2, width=6, depth=2, attention=attention)
    x = torch.rand(2, 3, *size)
    assert torch.equal(network(x, torch.tensor([0.0, 999.5])), torch.zeros(2, 2, *size))
    nn.init.normal_(network.network.conv_out.weight)
    early, late = network(x, torch.tensor([-3.5, 1.0])), network(x, torch.tensor([700.25, 1.0]))
    assert early.shape == (2, 2, *size)
    assert not torch.allclose(early[0], late[0])
    torch.testing.assert_close(early[1], late[1])
    early.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_the_border_is_not_told_from_the_middle_unless_zeros_say_so():
    for padding in ("reflect", "replicate", "zeros"):
        network = DiffusionUNet(1, 1, width=4, depth=2, padding=padding)
        nn.init.normal_(network.network.conv_out.weight)
        flat = network(torch.full((1, 1, 32, 32), 0.7), torch.zeros(1))
        assert (flat.std() > 1e-2) == (padding == "zeros"), padding


def test_places_far_apart_see_each_other_only_with_attention():
    """Once the groups' statistics are set aside, a changed corner is not seen at the other end without attention."""
    for attention in (False, True):
        network = DiffusionUNet(1, 1, width=4, depth=1, attention=attention).double().eval()
        nn.init.normal_(network.network.conv_out.weight)
        for norm in [m for m in network.modules() if isinstance(m, nn.GroupNorm)]:
            norm.forward = lambda x: x
        x = torch.rand(1, 1, 96, 8, dtype=torch.float64)
        changed = x.clone()
        changed[..., :4, :] += 1
        t = torch.zeros(1)
        moved = (network(changed, t) - network(x, t))[..., -8:, :].abs().max()
        assert (moved > 0) == attention
        method = Diffusion(
            1, 1, denoiser=lambda seen, target, a=attention: DiffusionUNet(seen, target, width=4, depth=1, attention=a)
        )
        assert method.local_networks != attention


# -- runs -------------------------------------------------------------------------------------------------------

SPLIT = {"train": 0.5, "validation": 0.2, "test": 0.3, "seed": 0}


@pytest.fixture
def fresh_accelerate():
    """Accelerate remembers the first launch of a process; each run here is a launch of its own."""

    def forget():
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    forget()
    yield forget
    forget()


def test_a_resumed_run_is_bit_for_bit_the_same(fresh_accelerate, tiny_store, tmp_path):
    def run(name, stop=None, resume=False):
        fresh_accelerate()
        config = TrainingConfig(steps=4, batch_size=2, precision="no", log_every=1, checkpoint_every=2)
        data = TranslationData(
            DataConfig(str(tiny_store), source=["gas"], target=["hi"], split=Split(**SPLIT)), MapStore(tiny_store)
        )
        set_seed(0)
        method = tiny(drop_source=0.3)

        def until_stop(batches, first):
            for number, batch in enumerate(batches, start=first):
                if number == stop:
                    raise InterruptedError("the power went")
                yield batch

        def loader(plan):
            return until_stop(iter(data.loader(config, plan)), plan.first)

        Trainer(method, loader, config, tmp_path / name, Hooks(identify=data.identify), resume=resume).run()
        return method

    straight = run("straight")
    with pytest.raises(InterruptedError):
        run("broken", stop=3)
    resumed = run("broken", resume=True)
    assert straight.target_scale.known
    assert 0 < straight.target_scale.spread < 1
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    first, second = (latest(tmp_path / name) / "average.safetensors" for name in ("straight", "broken"))
    assert first.read_bytes() == second.read_bytes()


def test_the_shipped_configuration_trains_and_translates(fresh_accelerate, tiny_store, tmp_path, repository):
    options = [
        *("--config", repository / "configs" / "translate" / "diffusion.yaml", "--data.store", tiny_store),
        *("--data.build=", "--data.split={train: 0.5, validation: 0.2, test: 0.3, seed: 0}", "--evaluation=false"),
        *("--training.steps=3", "--training.batch_size=2", "--training.sample_every=2", "--output", tmp_path / "run"),
        *("--method.init_args.denoiser.init_args.width=4", "--method.init_args.calls=4"),
    ]
    train_command([str(option) for option in options])
    assert (tmp_path / "run" / "samples" / "step_0000002.png").is_file()
    method = Translator.from_pretrained(tmp_path / "run").method
    assert method.target_scale.known
    assert float(method.target_scale.spread) not in (0.0, 1.0)
    with torch.no_grad():
        maps = method.translate(torch.rand(1, 1, 32, 32), calls=3)
    assert maps.isfinite().all()


# -- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "dpm_solver"}, r"unknown sampler 'dpm_solver'. Did you mean 'dpm_solver\+\+'\?"),
        ({"prediction": "epsilom"}, r"unknown prediction 'epsilom'. Did you mean 'epsilon'\?"),
        ({"schedule": "liner"}, r"unknown schedule 'liner'. Did you mean 'linear'\?"),
        ({"prediction": "epsilon", "zero_terminal_snr": True}, "take prediction v_prediction or sample"),
        ({"zero_terminal_snr": True, "min_snr": 5.0}, "no weight"),
        ({"min_snr": -1.0}, "min_snr must be 0"),
        ({"guidance": 2.0}, "set drop_source"),
        ({"guidance": float("nan"), "drop_source": 0.1}, "guidance must be a number"),
        ({"drop_source": 1.0}, "probability below 1"),
        ({"train_steps": 19}, "train_steps must be at least 20, not 19"),
        ({"train_steps": 50, "calls": 51}, "51 steps are more than the 50"),
        ({"calls": 0}, "at least 1 network call"),
        ({"calls": -4}, "at least 1 network call"),
        ({"calls": 1, "guidance": 2.0, "drop_source": 0.1}, "at least 2 network call"),
        (
            {"sampler": "ddim", "calls": 20},
            "20 steps of ddim would draw maps that vary too little; it takes at least 50",
        ),
        ({"target_mean": 1.0}, "both the mean and the deviation"),
        ({"target_mean": 1.0, "target_deviation": 0.0}, "the deviation positive"),
    ],
)
def test_choices_that_cannot_be_are_refused(options, message):
    with pytest.raises(SkyshiftError, match=message):
        tiny(**options)


@pytest.mark.parametrize("calls", [0, -1, 1001])
def test_calls_that_cannot_be_are_refused_before_the_network_is_called(calls):
    method = tiny(Counting)
    with pytest.raises(SkyshiftError, match="more than the 1000" if calls > 0 else "at least 1 network call"):
        method.translate(torch.rand(1, 1, 8, 8), calls=calls)
    assert method.denoiser.count == 0


@pytest.mark.parametrize(("name", "value"), [("width", 3), ("depth", 0), ("blocks", 0)])
def test_networks_that_cannot_be_are_refused(name, value):
    with pytest.raises(SkyshiftError, match=f"{name} is {value}; it must be at least"):
        DiffusionUNet(1, 1, **{name: value})
    with pytest.raises(SkyshiftError, match="did you mean 'reflect'"):
        DiffusionUNet(1, 1, padding="reflct")
