"""The explainers of ``shap`` itself behind the same interface as :mod:`skyshift.attribution`.

``shap_gradient``  ``shap.GradientExplainer``: expected gradients with independent draws, one sample at a time.
``partition``      ``shap.PartitionExplainer``: Owen values over a binary tree of image regions. The tree parts the
                   channels first, so that source and target have values of their own at any depth, then halves the
                   longer side. A hidden region shows the mean of the background or a blurred version of the sample
                   (a box, mirrored at the border). Regions that the evaluations do not reach share alike.
``deep``           ``shap.DeepExplainer``: DeepLIFT's rules, one backward pass for each background. They are exact
                   (they add up) for layers that are linear or act on each value by itself; networks with other layers
                   are refused, and what cannot be seen in the modules is caught by the sum.

References:
    Lundberg & Lee 2017, arXiv:1705.07874.
    Shrikumar, Greenside & Kundaje 2017, Learning Important Features Through Propagating Activation Differences,
    ICML, arXiv:1704.02685.
    Owen 1977, Values of Games with a Priori Unions, doi:10.1007/978-3-642-45494-3_7.
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import shap
import torch
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from shap.explainers._deep import deep_pytorch
from torch import Tensor, nn

from skyshift.attribution import Attribution, AttributionConfig, AttributionError, Numbers, Runner, Values


def explain_with_shap(
    model: nn.Module,
    inputs: Tensor,
    background: Tensor,
    config: AttributionConfig,
    outputs: Sequence[int] | None,
    keys: Sequence[int],
) -> Attribution:
    """Explain with the explainer of ``shap`` that the configuration names; see :func:`skyshift.attribution.explain`."""
    run = Runner(model, config, outputs)
    of_background, output = run.evaluate(background).numpy(), run.evaluate(inputs).numpy()
    base = np.broadcast_to(of_background.mean(0), output.shape).copy()
    shape = (len(inputs), output.shape[1], *inputs.shape[1:])
    x, b = inputs.to(run.device).float(), background.to(run.device).float()
    draws = config.samples
    if config.explainer == "shap_gradient":
        values = _gradient(run, x, b, config, keys)
    elif config.explainer == "deep":
        values, draws = _deep(run, x, b), len(b)
    else:
        values, base = _partition(run, x, b, config, keys)
        draws = config.evaluations
    return Attribution(
        np.ascontiguousarray(values.reshape(shape), np.float32),
        output,
        base,
        np.broadcast_to(of_background.std(0), output.shape).copy(),
        np.full(len(inputs), draws),
        config.explainer,
    )


class _Selected(nn.Module):
    """The outputs that are explained, as a module, which is what ``shap`` takes."""

    def __init__(self, run: Runner) -> None:
        super().__init__()
        self.model, self._run = run.model, [run]

    def forward(self, x: Tensor) -> Tensor:
        return self._run[0](x)


@contextlib.contextmanager
def _seeded(seed: int, key: int) -> Iterator[int]:
    """``shap`` draws from NumPy's global generator: seed it, and put it back as it was.

    Yields:
        The seed, of 32 bits.
    """
    before = np.random.get_state()  # noqa: NPY002
    mixed = int(np.random.SeedSequence([seed, key]).generate_state(1)[0])
    np.random.seed(mixed)  # noqa: NPY002
    try:
        yield mixed
    finally:
        np.random.set_state(before)  # noqa: NPY002


def _outputs_first(values: Any) -> NDArray[Any]:
    """(1, *shape, outputs), or (1, *shape, 1), to (outputs, *shape)."""
    return np.moveaxis(np.asarray(values)[0], -1, 0)


def _gradient(run: Runner, x: Tensor, b: Tensor, config: AttributionConfig, keys: Sequence[int]) -> Values:
    explainer = shap.GradientExplainer(_Selected(run), b, batch_size=run.batch_size)
    found = []
    for i, key in enumerate(keys):
        with _seeded(config.seed, key) as seed:
            values = explainer.shap_values(x[i : i + 1], nsamples=config.samples, rseed=seed)
        found.append(_outputs_first(values))
    return np.stack(found)


# -- deep ---------------------------------------------------------------------------------------------------------


def inexact_layers(model: nn.Module) -> list[str]:
    """Layers for which DeepLIFT's rules do not add up, or ``shap`` has none, with the reason."""
    found, seen = [], set()
    for name, module in model.named_modules(remove_duplicate=False):
        kind = type(module).__name__
        if list(module.children()) or not name:
            continue
        if kind in ("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d", "GroupNorm", "LayerNorm"):
            found.append(f"{name} ({kind}) divides by a spread that depends on the input")
        elif kind not in deep_pytorch.op_handler:
            found.append(f"{name} ({kind}) has no rule in shap")
        elif id(module) in seen and deep_pytorch.op_handler[kind].__name__ in ("nonlinear_1d", "maxpool"):
            found.append(f"{name} ({kind}) is used twice")
        seen.add(id(module))
    return found


def _deep(run: Runner, x: Tensor, b: Tensor) -> Values:
    """DeepLIFT averaged over the background.

    Raises:
        AttributionError: It would not be exact for this network; the message names the layers.
    """
    cure = "Use explainer gradient, or a network with batch normalisation or none"
    if layers := inexact_layers(run.model):
        more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
        raise AttributionError(f"the deep explainer is not exact here: {'; '.join(layers[:3])}{more}. {cure}")
    found = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "unrecognized nn.Module: _Selected")
        try:
            explainer = shap.DeepExplainer(_Selected(run), b)
            for i in range(len(x)):
                found.append(_outputs_first(explainer.shap_values(x[i : i + 1], check_additivity=False)))
        except RuntimeError as error:
            raise AttributionError(
                f"the deep explainer cannot follow this network: it changes activations in place ({error}). {cure}"
            ) from error
    values = np.stack(found)
    with torch.no_grad():
        change = (run(x) - run(b).mean(0)).double().cpu().numpy()
    missing = np.abs(values.reshape(*change.shape, -1).sum(-1, dtype=np.float64) - change)
    if not bool((missing <= 1e-2 * np.maximum(np.abs(change), 1e-2)).all()):
        raise AttributionError(
            f"the deep explainer is not exact here: its values miss the change in output by up to {missing.max():.3g}; "
            f"the network has operations outside its modules that shap does not see. {cure}"
        )
    return values


# -- partition ----------------------------------------------------------------------------------------------------


def channel_tree(channels: int, height: int, width: int) -> NDArray[np.float64]:
    """A binary tree over the pixels of (channels, height, width): channels apart first, then halves of the longer side.

    Returns:
        (pixels - 1, 4) rows of left child, right child, distance (unused, 0) and leaves, as ``scipy`` writes clusters:
        children below ``pixels`` are leaves, others rows.
    """
    index = np.arange(channels * height * width).reshape(channels, height, width)
    rows: list[tuple[float, float, float, float]] = []

    def join(block: NDArray[np.int64]) -> int:
        if block.size == 1:
            return int(block.flat[0])
        axis = 0 if block.shape[0] > 1 else 1 + int(block.shape[2] > block.shape[1])
        middle = block.shape[axis] // 2
        left, right = np.split(block, [middle], axis=axis)
        row = (float(join(left)), float(join(right)), 0.0, float(block.size))
        rows.append(row)
        return index.size + len(rows) - 1

    join(index)
    return np.array(rows)


class _ImageMasker(shap.maskers.Image):
    """``shap``'s image masker on (channels, height, width), with a tree that parts the channels first."""

    def build_partition_tree(self) -> None:
        """Set ``clustering``."""
        self.clustering = channel_tree(*self.input_shape)


def blurred(x: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Each map of (channels, height, width) averaged in a box of ``size`` pixels, mirrored at the border."""
    return np.asarray(uniform_filter(x, size=(0, size, size), mode="mirror"), np.float32)


def _partition(
    run: Runner, x: Tensor, b: Tensor, config: AttributionConfig, keys: Sequence[int]
) -> tuple[Values, Numbers]:
    """Owen values (n, outputs, *shape), and (n, outputs) output of the hidden samples.

    Raises:
        AttributionError: The samples are no images.
    """
    if x.ndim != 4:
        raise AttributionError("the partition explainer parts images: samples have shape (channels, height, width)")

    def model(masked: NDArray[np.float32]) -> Numbers:
        return run.evaluate(torch.from_numpy(np.asarray(masked, np.float32))).numpy()

    mean = b.mean(0).cpu().numpy()
    found, base, explainer = [], [], None
    for i, key in enumerate(keys):
        one = x[i].cpu().numpy()
        if explainer is None or config.mask == "blur":
            masker = _ImageMasker(mean if config.mask == "mean" else blurred(one, config.blur))
            explainer = shap.PartitionExplainer(model, masker)
        with _seeded(config.seed, key):  # breaks ties in the queue of regions
            made = explainer(one[None], max_evals=config.evaluations, batch_size=run.batch_size, silent=True)
        found.append(_outputs_first(made.values))
        base.append(np.atleast_1d(np.asarray(made.base_values, np.float64).reshape(-1)))
    return np.stack(found), np.stack(base)
