"""SHAP values of any torch model: which inputs made this output, in the output's unit, and how far they add up.

For a model f, an input x and a background set B, expected gradients are the Aumann-Shapley values averaged over B,

    φ_i(x) = E_{b ~ B, α ~ U(0, 1)} [(x_i - b_i) ∂f/∂x_i (b + α (x - b))],    Σ_i φ_i = f(x) - E_B f(b).

The right-hand side is known without any sampling, so every explanation carries what is missing from it, its
*completeness error*

    ε = |Σ_i φ_i - (f(x) - E_B f(b))| / max(|f(x) - E_B f(b)|, σ_B f),

relative to the change that is explained or, where that is next to nothing, to the spread of the output over the
background. A sample whose ε exceeds the tolerance is given twice the draws, and again, up to ``refine`` times; what
still exceeds it is refused by :meth:`Attribution.require_complete`.

Paths are not smooth (see :mod:`skyshift.attribution_draws`): backgrounds are drawn equally often and α is stratified,
so that the error falls faster than 1/√draws. Independent draws are there to compare with (``sampling="random"``).

In the Fourier basis the same expectation splits by spatial frequency. With F the discrete transform over the N pixels,

    Σ_pixels (x - b) ∂f = (1/N) Σ_k Re[conj(F(x - b)) F(∂f)],

so the sum over a ring of |k| is the share of the change in output that this scale makes, and the rings add up to Σ φ.

The model is copied, set to evaluation, and every module that works in place is told not to in the copy: the caller's
model stays as it is. Explainers of ``shap`` itself are in :mod:`skyshift.attribution_shap`.

References:
    Lundberg & Lee 2017, A Unified Approach to Interpreting Model Predictions, NeurIPS, arXiv:1705.07874.
    Erion et al. 2021, Improving performance of deep learning models with axiomatic attribution priors and expected
    gradients, Nature Machine Intelligence 3, 620, arXiv:1906.10670.
    Sundararajan, Taly & Yan 2017, Axiomatic Attribution for Deep Networks, ICML, arXiv:1703.01365.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skyshift.attribution_draws import Sampling, draw
from skyshift.errors import SkyshiftError

ExplainerName = Literal["gradient", "shap_gradient", "partition", "deep"]
Values = NDArray[np.float32]
Numbers = NDArray[np.float64]

CPU_BATCH = 64
"""Points in one pass on a CPU, where larger batches fall out of its caches."""

DEVICE_BATCH = 1024
"""Points in one pass on a GPU."""


MOST_SLOPES = 2**27
"""Numbers in the gradients of all outputs that are held at once (half a gigabyte)."""


class AttributionError(SkyshiftError):
    """An explanation cannot be made, or does not add up."""


@dataclass
class AttributionConfig:
    """How to explain.

    Attributes:
        explainer: ``gradient``: expected gradients, batched over samples and draws; ``shap_gradient``: the same by
            ``shap.GradientExplainer``, one sample at a time; ``partition``: Owen values over a tree of image regions by
            ``shap.PartitionExplainer``; ``deep``: DeepLIFT by ``shap.DeepExplainer``, where it is exact.
        samples: Draws of (background, α) for each sample; gradient explainers.
        batch_size: Points in one pass of the model; 0 for 64 on a CPU and 1024 on a GPU.
        seed: Of the draws.
        precision: Of the model's passes: no (float32), bf16 or fp16 (GPU only).
        sampling: Draws of the gradient explainer: ``stratified``, or ``random`` (independent and uniform).
        tolerance: Completeness error above which an explanation is refused.
        refine: How often the gradient explainer may double the draws of a sample above the tolerance.
        mask: What hides a region from the partition explainer: ``mean`` of the background, or ``blur`` of the sample.
        blur: Side of the blurring box, pixels.
        evaluations: Passes of the model for each sample, partition explainer.
    """

    explainer: ExplainerName = "gradient"
    samples: int = 64
    batch_size: int = 0
    seed: int = 0
    precision: Literal["no", "bf16", "fp16"] = "no"
    sampling: Sampling = "stratified"
    tolerance: float = 0.05
    refine: int = 4
    mask: Literal["mean", "blur"] = "mean"
    blur: int = 16
    evaluations: int = 1000

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("batch_size", 0), ("refine", 0), ("blur", 1), ("evaluations", 4)):
            if getattr(self, name) < least:
                raise AttributionError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not self.tolerance > 0:
            raise AttributionError(f"tolerance must be positive, not {self.tolerance}")


@dataclass(frozen=True)
class Attribution:
    """SHAP values of n samples and their sums.

    Attributes:
        values: (n, outputs, *shape of a sample), in the unit of the output.
        output: (n, outputs), f(x).
        base: (n, outputs), what the values explain the difference from: E_B f(b), or f of the masked sample.
        spread: (n, outputs), standard deviation of f over the background.
        draws: (n,) gradients or passes that each sample took.
        explainer: Which.
        spectrum: (n, outputs, channels, rings) sums of the values by spatial frequency, where asked for; ring j holds
            round(|k|) = j in units of the fundamental of the shorter side.
    """

    values: Values
    output: Numbers
    base: Numbers
    spread: Numbers
    draws: NDArray[np.int64]
    explainer: str
    spectrum: Values | None = None

    @property
    def change(self) -> Numbers:
        """(n, outputs), f(x) - base: what the values must add up to."""
        return self.output - self.base

    @property
    def scale(self) -> Numbers:
        """(n, outputs), what the completeness error is relative to: the larger of |change| and ``spread``."""
        return np.maximum(np.abs(self.change), self.spread)

    @property
    def missing(self) -> Numbers:
        """(n, outputs), sum of the values less the change, in the unit of the output."""
        total = self.values.reshape(*self.output.shape, -1).sum(-1, dtype=np.float64)
        return total - self.change

    @property
    def completeness_error(self) -> Numbers:
        """(n, outputs), |missing| / scale; 0 where both are 0."""
        missing = np.abs(self.missing)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(missing == 0, 0.0, missing / self.scale)

    def require_complete(self, tolerance: float, names: Sequence[str] = ()) -> None:
        """Refuse an explanation that does not add up.

        Raises:
            AttributionError: A completeness error is above the tolerance; the message names the worst sample.
        """
        error = self.completeness_error.max(axis=1, initial=0.0)
        bad = ~(error <= tolerance)  # NaN is bad
        if bad.any():
            worst = int(np.argmax(np.where(np.isnan(error), np.inf, error)))
            name = names[worst] if names else f"number {worst}"
            raise AttributionError(
                f"{bad.sum()} of {len(error)} explanations ({self.explainer}) do not add up to the change in output "
                f"within {tolerance:g} of it; the worst, {name}, misses {error[worst]:.3g} after {self.draws[worst]} "
                "draws. Raise samples or refine, or the tolerance if you can live with it, and name a new output"
            )


def explain(
    model: nn.Module,
    inputs: Tensor,
    background: Tensor,
    config: AttributionConfig | None = None,
    *,
    outputs: Sequence[int] | None = None,
    keys: Sequence[int] | None = None,
    spectrum: bool = False,
) -> Attribution:
    """Explain outputs of a model.

    Args:
        model: (batch, *shape) to (batch, outputs), differentiable, on its device. It is not changed.
        inputs: (n, *shape), what to explain.
        background: (m, *shape), what it is compared with.
        config: How.
        outputs: Which outputs; by default all.
        keys: (n,) numbers that, with the seed, fix the draws of each sample, so that they do not depend on which
            samples are explained together; by default 0 to n - 1.
        spectrum: Also split the values by spatial frequency (gradient explainer, images alone).

    Raises:
        AttributionError: The background is empty or of another shape, a value is not finite, an output does not exist,
            or the explainer cannot explain this model.
    """
    config = config or AttributionConfig()
    require_comparable(inputs, background)
    if config.precision == "fp16" and _device(model).type == "cpu":
        raise AttributionError("fp16 needs a GPU, on a CPU it would be float32 in silence; use bf16 or no")
    if spectrum and (config.explainer != "gradient" or inputs.ndim != 4):
        raise AttributionError("a split by spatial frequency needs the gradient explainer and images")
    keys = list(range(len(inputs))) if keys is None else list(keys)
    model = out_of_place(model)
    if config.explainer == "gradient":
        return _Gradient(model, background, config, outputs).explain(inputs, keys, spectrum)
    from skyshift.attribution_shap import explain_with_shap  # shap takes seconds to import

    return explain_with_shap(model, inputs, background, config, outputs, keys)


def input_gradient(
    model: nn.Module, inputs: Tensor, config: AttributionConfig | None = None, *, outputs: Sequence[int] | None = None
) -> Values:
    """Plain gradients ∂f/∂x at the samples, (n, outputs, *shape): the baseline that SHAP values are compared with."""
    run = Runner(out_of_place(model), config or AttributionConfig(), outputs)
    return (
        torch.cat([gradients(run, x.to(run.device).float()).cpu() for x in inputs.split(run.batch_size)], 1)
        .transpose(0, 1)
        .numpy()
    )


def gradients(run: "Runner", points: Tensor) -> Tensor:
    """∂f_k/∂x at points (p, *shape) on the device: (outputs, p, *shape)."""
    points = points.detach().requires_grad_(True)
    with torch.enable_grad():
        y = run(points).sum(0)
        last = len(y) - 1
        return torch.stack(
            [torch.autograd.grad(one, points, retain_graph=k < last)[0] for k, one in enumerate(y.unbind())]
        )


def require_comparable(inputs: Tensor, background: Tensor) -> None:
    """Check that samples can be explained against a background.

    Raises:
        AttributionError: The background is empty or of another shape, or a value is not finite.
    """
    if not len(background):
        raise AttributionError("the background is empty: an explanation is a difference from something; name some maps")
    if inputs.shape[1:] != background.shape[1:]:
        raise AttributionError(
            f"samples have shape {tuple(inputs.shape[1:])}, the background {tuple(background.shape[1:])}; both are "
            "(channels, height, width) of the same domains and the same size"
        )
    for what, tensor in (("samples", inputs), ("background", background)):
        if not bool(torch.isfinite(tensor).all()):
            raise AttributionError(f"the {what} hold values that are not finite; fill or crop blank pixels")


def out_of_place(model: nn.Module) -> nn.Module:
    """A copy to explain: in evaluation mode, weights fixed, no module working in place (the same function of x)."""
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    for module in copied.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
    return copied


def _device(model: nn.Module) -> torch.device:
    tensor = next((t for t in (*model.parameters(), *model.buffers())), None)
    return torch.device("cpu") if tensor is None else tensor.device


class Runner:
    """Passes of a model in batches, on its device and in the precision asked for.

    Args:
        model: (batch, *shape) to (batch, outputs).
        config: Batch size and precision.
        outputs: Which outputs; ``None`` for all.
    """

    def __init__(self, model: nn.Module, config: AttributionConfig, outputs: Sequence[int] | None) -> None:
        self.model, self.outputs, self.device = model, outputs, _device(model)
        self.precision = config.precision
        self.batch_size = config.batch_size or (CPU_BATCH if self.device.type == "cpu" else DEVICE_BATCH)

    def __call__(self, x: Tensor) -> Tensor:
        """One pass: (batch, *shape) on the device to (batch, outputs) float32.

        Raises:
            AttributionError: The model does not give (batch, outputs), or has no such output.
        """
        kind = torch.float16 if self.precision == "fp16" else torch.bfloat16
        with torch.autocast(self.device.type, kind, enabled=self.precision != "no"):
            y = self.model(x.clone())  # which a model may change in place
        if y.ndim != 2:
            raise AttributionError(f"a model to explain gives (batch, outputs), not {tuple(y.shape)}")
        if self.outputs is None:
            return y.float()
        if bad := [k for k in self.outputs if not 0 <= k < y.shape[1]]:
            raise AttributionError(f"there is no output {bad[0]}: the model has {y.shape[1]}, counted from 0")
        return y[:, list(self.outputs)].float()

    @torch.no_grad()
    def evaluate(self, x: Tensor) -> Tensor:
        """All outputs of (n, *shape), (n, outputs) float64 on the CPU."""
        return torch.cat([self(part.to(self.device)).double().cpu() for part in x.split(self.batch_size)])


class _Gradient:
    """Expected gradients, batched over samples and draws."""

    def __init__(
        self, model: nn.Module, background: Tensor, config: AttributionConfig, outputs: Sequence[int] | None
    ) -> None:
        self.config, self.run = config, Runner(model, config, outputs)
        values = self.run.evaluate(background)
        self.base, self.spread = values.mean(0), values.std(0, correction=0)
        self.background = background.to(self.run.device).float()

    def explain(self, inputs: Tensor, keys: Sequence[int], spectrum: bool) -> Attribution:
        config, count = self.config, len(inputs)
        output = self.run.evaluate(inputs) if count else torch.zeros((0, len(self.base)), dtype=torch.float64)
        change = output - self.base
        scale = torch.maximum(change.abs(), self.spread)
        values, rings, used = self._block(inputs, keys, config.samples, spectrum)
        draws = torch.full((count,), used)
        for round_ in range(1, config.refine + 1):
            missing = (values.flatten(2).double().sum(2) - change).abs()
            poor = torch.nonzero((missing > config.tolerance * scale).any(1)).flatten()
            if not len(poor):
                break
            # Strata get finer with the draws and the error falls faster than 1/√draws: the new ones replace the old.
            again = [keys[i] for i in poor.tolist()]
            better, better_rings, used = self._block(inputs[poor], again, config.samples * 2**round_, spectrum)
            values[poor], draws[poor] = better, used
            if rings is not None and better_rings is not None:
                rings[poor] = better_rings
        return Attribution(
            values.numpy(),
            output.numpy(),
            np.broadcast_to(self.base.numpy(), output.shape).copy(),
            np.broadcast_to(self.spread.numpy(), output.shape).copy(),
            draws.numpy(),
            "gradient",
            None if rings is None else rings.numpy(),
        )

    def _block(
        self, inputs: Tensor, keys: Sequence[int], samples: int, spectrum: bool
    ) -> tuple[Tensor, Tensor | None, int]:
        """Values (n, outputs, *shape) and rings from so many draws, on the CPU, and how many there were."""
        shape, outputs, device = inputs.shape[1:], len(self.base), self.run.device
        drawn = [draw(self.config.sampling, (self.config.seed, key), samples, len(self.background)) for key in keys]
        used = len(drawn[0].alpha) if drawn else samples
        together = min(used, self.run.batch_size, max(1, MOST_SLOPES // (outputs * math.prod(shape))))
        step = max(1, self.run.batch_size // together)
        split = ring_sums(shape[-2:], device) if spectrum else None
        values, rings = torch.empty((len(inputs), outputs, *shape)), None
        if split is not None:
            rings = torch.empty((len(inputs), outputs, shape[0], split.rings))
        for start in range(0, len(inputs), step):
            rows = slice(start, min(start + step, len(inputs)))
            which, alpha, weight = (
                torch.from_numpy(np.stack([getattr(d, name) for d in drawn[rows]])).to(device)
                for name in ("background", "alpha", "weight")
            )
            x = inputs[rows].to(device).float().unsqueeze(1)
            sums: Tensor | float = 0.0
            ring_totals: Tensor | float = 0.0
            for begin in range(0, used, together):
                part = slice(begin, begin + together)
                delta = x - self.background[which[:, part]]
                ones = (1,) * len(shape)
                back = (1.0 - alpha[:, part]).float().reshape(*delta.shape[:2], *ones)
                slopes = gradients(self.run, (x - back * delta).flatten(0, 1)).reshape(outputs, *delta.shape)
                delta *= (weight[:, part] / used).float().reshape(*delta.shape[:2], *ones)
                sums = sums + torch.einsum("kns...,ns...->nk...", slopes, delta)
                if split is not None:
                    ring_totals = ring_totals + split(delta, slopes)
            values[rows] = torch.as_tensor(sums).cpu()
            if rings is not None:
                rings[rows] = torch.as_tensor(ring_totals).cpu()
        return values, rings, used


class ring_sums:  # noqa: N801
    """Σ over rings of |k| of Re[conj(F d) F g] / N, for real images.

    Args:
        size: (height, width).
        device: Of the images.
    """

    def __init__(self, size: Sequence[int], device: torch.device) -> None:
        height, width = size
        # Frequencies in units of the fundamental of the shorter side, pixels being square.
        ky = torch.fft.fftfreq(height, device=device) * min(size)
        kx = torch.fft.rfftfreq(width, device=device) * min(size)
        ring = torch.hypot(ky[:, None], kx[None]).round().long()
        self.rings = int(ring.max()) + 1
        # The half plane that is left out holds the complex conjugates of the columns between the first and the last.
        weight = torch.full_like(kx, 2.0)
        weight[0] = 1.0
        if width % 2 == 0:
            weight[-1] = 1.0
        one_hot = nn.functional.one_hot(ring.flatten(), self.rings).float()
        self._weights = one_hot * (weight.expand(height, -1).reshape(-1, 1) / (height * width))

    def __call__(self, delta: Tensor, gradients: Tensor) -> Tensor:
        """(n, draws, channels, h, w) and (outputs, n, draws, channels, h, w) to (n, outputs, channels, rings)."""
        d, g = torch.fft.rfft2(delta), torch.fft.rfft2(gradients)
        product = (d.conj() * g).real.sum(dim=2)  # over the draws
        return torch.einsum("kncp,pr->nkcr", product.flatten(-2), self._weights)
