"""The speed of training and translating, against the same networks in a plain float32 loop.

    python benchmarks/training_speed.py [--quick] [--compile] [--json FILE]

The plain loop is what the papers describe, as the first public PyTorch implementations went about it: float32, maps
with the channels first, the discriminator judges true and made maps one after the other, then the generator's map once
more; Adam parameter by parameter; every loss is read each step to be logged. The loop of this package does the same
optimization step (pix2pix of the embedded default, its learning rate schedule and its averaged weights included).

Both take turns on batches that are in memory; the median of all steps counts. ``--compile`` adds torch.compile, which
takes minutes before its first step on a CPU. Writes ``benchmarks/results/training_speed.md`` (not with ``--quick``).

References:
    Isola, Zhu, Zhou & Efros 2017, arXiv:1611.07004.
"""

import skyshift  # isort: skip  # noqa: F401 - sets OpenMP's waiting before torch is imported

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState
from report import RESULTS, Claim, machine, parser, report
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from skyshift.engine import Trainer, TrainingConfig, computes_bfloat16
from skyshift.files import write_text
from skyshift.translate.methods.pix2pix import Pix2Pix
from skyshift.translate.networks.patchgan import PatchGAN
from skyshift.translate.networks.unet import UNet

BATCH, PIXELS = 8, 64
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
BARS = (3.0, 5.0) if GPU else (1.6, 3.0)
Step = Callable[[], object]


def batches() -> list[dict[str, Tensor]]:
    """Scaled maps of smooth fields, as many as a run would hold ready."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(4):
        coarse = torch.randn(2, BATCH, 1, PIXELS // 4, PIXELS // 4, generator=generator)
        source, target = (nn.functional.interpolate(maps, scale_factor=4, mode="bicubic") for maps in coarse)
        made.append({"source": source.to(DEVICE), "target": target.to(DEVICE)})
    return made


def method() -> Pix2Pix:
    """The networks of the embedded default."""
    torch.manual_seed(0)
    return Pix2Pix(
        1,
        1,
        generator=partial(UNet, width=24, depth=3, norm="group", padding="zeros", residual=True),
        discriminator=partial(PatchGAN, width=24, layers=2, norm="instance"),
    ).to(DEVICE)


def channels_first(network: nn.Module) -> nn.Module:
    """Undo the layout that the U-Net chooses for its maps; all that follows takes that of the first features."""
    assert isinstance(network, UNet)
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_hook(lambda _, inputs, features: features.contiguous())
    return network


def plain_training() -> Iterator[list[float]]:
    """Optimizer steps of the plain loop, for ever."""
    made = method()
    generator, discriminator = channels_first(made.generator), made.discriminator
    adam = partial(torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999), foreach=False, fused=False)
    of_generator, of_discriminator = adam(generator.parameters()), adam(discriminator.parameters())
    square, distance = nn.MSELoss(), nn.L1Loss()

    def judged(logits: Tensor, real: bool) -> Tensor:
        return square(logits, torch.full_like(logits, float(real)))

    for batch in cycle(batches()):
        source, target = batch["source"], batch["target"]
        fake = generator(source)
        of_discriminator.zero_grad()
        on_fake = judged(discriminator(torch.cat([source, fake.detach()], 1)), False)
        on_real = judged(discriminator(torch.cat([source, target], 1)), True)
        ((on_fake + on_real) / 2).backward()
        of_discriminator.step()
        for parameter in discriminator.parameters():
            parameter.requires_grad_(False)
        of_generator.zero_grad()
        adversarial = judged(discriminator(torch.cat([source, fake], 1)), True)
        l1 = 100.0 * distance(fake, target)
        (adversarial + l1).backward()
        of_generator.step()
        for parameter in discriminator.parameters():
            parameter.requires_grad_(True)
        yield [loss.item() for loss in (on_fake, on_real, adversarial, l1)]


def our_training(work: str, **options: object) -> Iterator[None]:
    """Optimizer steps of the package's loop, for ever."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    settings = {"steps": 10**6, "batch_size": BATCH, "learning_rate": 2e-4, "average": 0.995, **options}
    trainer = Trainer(method(), lambda plan: [], TrainingConfig(**settings), Path(work))  # type: ignore[arg-type]
    return trainer.trial_steps(cycle(batches()))


@torch.no_grad()
def plain_inference(size: int) -> Iterator[Tensor]:
    """Translations of BATCH maps, ``size`` at once, in float32 with the channels first."""
    generator = channels_first(method().generator).eval()
    for batch in cycle(batches()):
        yield torch.cat([generator(maps) for maps in batch["source"].split(size)]).cpu()


@torch.inference_mode()
def our_inference() -> Iterator[Tensor]:
    """The same by the method, in bfloat16 where the hardware computes it."""
    made = method().eval()
    for batch in cycle(batches()):
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=computes_bfloat16()):
            yield made.translate(batch["source"]).float().cpu()


def seconds(step: Iterator[object]) -> float:
    """Of one step, to its end on the device."""
    started = time.perf_counter()
    next(step)
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(steps: dict[str, Iterator[object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, in turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(3):
            seconds(step)
    for _ in range(rounds):
        for name, step in steps.items():
            times[name] += [seconds(step) for _ in range(2)]
    return {name: statistics.median(values) for name, values in times.items()}


def profiled(step: Iterator[object]) -> list[str]:
    """The costliest operations of four steps and their shares, as rows of a table."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if GPU else [])]
    with profile(activities=activities) as found:
        for _ in range(4):
            seconds(step)

    def cost(entry: object) -> float:
        return float(getattr(entry, "self_device_time_total" if GPU else "self_cpu_time_total"))

    entries = sorted(found.key_averages(), key=cost, reverse=True)
    total = sum(map(cost, entries))
    return [f"| {entry.key} | {100 * cost(entry) / total:.1f} |" for entry in entries[:10]]


def main() -> None:
    """Measure, judge, write."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--compile", action="store_true", help="torch.compile as well")
    asked = arguments.parse_args()
    rounds = 8 if asked.quick else 40
    with tempfile.TemporaryDirectory() as work:
        training: dict[str, Iterator[object]] = {
            "plain loop, float32": plain_training(),
            "this loop": our_training(work),
            "this loop, channels_last": our_training(work, channels_last=True),
        }
        if asked.compile:
            training["this loop, compile"] = our_training(work, compile=True)
        inference: dict[str, Iterator[object]] = {
            "plain, float32, 8 maps at once": plain_inference(BATCH),
            "plain, float32, one map at once": plain_inference(1),
            "this package, 8 maps at once": our_inference(),
        }
        trained, translated = measure(training, rounds), measure(inference, 2 * rounds)
        shares = profiled(training["this loop"])
    unit = "with a GPU" if GPU else "with a bf16 unit" if computes_bfloat16() else "no bf16 unit on this machine"
    best = min(value for name, value in trained.items() if name.startswith("this"))
    ratios = (
        trained["plain loop, float32"] / best,
        translated["plain, float32, 8 maps at once"] / translated["this package, 8 maps at once"],
    )
    claims = [
        Claim(f"{what} throughput, fastest setting over a plain float32 loop ({unit})", ratio, f"≥ {bar}", ratio >= bar)
        for what, ratio, bar in zip(("training", "inference"), ratios, BARS, strict=True)
    ]
    report(claims, asked.json)
    text = page(trained, translated, claims, shares, unit, rounds)
    print(text)
    if not asked.quick:
        write_text(RESULTS / "training_speed.md", text)


def _rows(times: dict[str, float]) -> list[str]:
    first = next(iter(times.values()))
    return [f"| {n} | {1e3 * t:.1f} | {BATCH / t:.1f} | {first / t:.2f} |" for n, t in times.items()]


def page(
    trained: dict[str, float],
    translated: dict[str, float],
    claims: list[Claim],
    shares: list[str],
    unit: str,
    rounds: int,
) -> str:
    """The page of results."""
    lines = [
        "# The speed of training and translating, against a plain float32 loop",
        "",
        f"`python benchmarks/training_speed.py` made this page ({machine()}; "
        f"{torch.get_num_threads()} threads; {unit}). "
        f"pix2pix of the embedded default, {PIXELS}² pixels, batches of {BATCH} in memory. The plain loop takes the "
        "same networks through the step of the paper as the first public PyTorch implementations did: float32, "
        "channels first, Adam parameter by parameter, true and made maps judged one after the other, every loss read "
        "each step. Median of "
        f"{2 * rounds} steps, in turns.",
        "",
        "| training | ms a step | maps/s | over the plain loop |",
        "|---|---|---|---|",
        *_rows(trained),
        "",
        "| translating | ms a batch | maps/s | over the plain one |",
        "|---|---|---|---|",
        *_rows(translated),
        "",
        "| claim | value | bar | holds |",
        "|---|---|---|---|",
        *(f"| {c.name} | {c.value:.4g} | {c.bar} | {'yes' if c.holds else '**no**'} |" for c in claims),
        "",
        "The bars are set for hardware that computes bfloat16 (a CPU with AMX or AVX512-BF16, or a GPU). Without it "
        "both sides compute in float32 with the same kernels, and what is left is the layout of the maps, the fused "
        "optimizer and one judgement of true and made maps together.",
        "",
        "Where this loop spends a step (its own time of each operation, torch's profiler):",
        "",
        "| operation | share [%] |",
        "|---|---|",
        *shares,
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
