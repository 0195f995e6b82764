"""Batch normalisation with statistics of each domain's own.

    y = γ_d (x - μ_d) / √(σ²_d + ε) + β_d,    d the domain of the batch

In training μ_d and σ²_d are those of the batch, which is of one domain; their running averages, one pair a domain,
serve in evaluation. So the brightness and noise of one survey never blur the statistics of another. γ and β may be
each domain's own (Chang et al. 2019) or shared.

An encoder says of which domain its maps are (:func:`in_domain`) around its network, and the layers below read it there.
It is kept in a context variable: each thread has its own, and it is restored when the forward pass ends or fails.

On several processes the statistics are those of all processes' maps, with their gradient, so that two processes with
half a batch each do what one does with the whole. Every process runs a training forward pass of the same domain at the
same time, or all wait for each other. Micro-batches are normalised each by itself, as everywhere.

All domains lie in one parameter (domains, channels). A domain that a step does not see gets a gradient of exactly zero,
not none: data parallelism, which waits for a gradient of every parameter, is not kept waiting. An optimizer's weight
decay still acts on it.

References:
    Ioffe & Szegedy 2015, Batch Normalization, arXiv:1502.03167.
    Chang, You, Seo, Kwak & Han 2019, Domain-Specific Batch Normalization for Unsupervised Domain Adaptation,
    arXiv:1906.03950.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skyshift.adapt.gathering import processes
from skyshift.errors import SkyshiftError

_domain: ContextVar[int] = ContextVar("domain")


@contextmanager
def in_domain(domain: int) -> Iterator[None]:
    """Within, and in this thread, maps are of a domain.

    Args:
        domain: Its number, from 0.
    """
    token = _domain.set(domain)
    try:
        yield
    finally:
        _domain.reset(token)


class DomainBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation of maps that are all of one domain, which :func:`in_domain` says.

    Args:
        channels: Of the maps.
        domains: How many there are. With one, every domain shares it, and nothing needs to be said.
        own_affine: Whether each domain has a scale and a shift of its own.
        eps: Added to the variance.
        momentum: Weight of the newest batch in the running statistics; None for the plain mean over all batches.
        affine: Whether there is a scale and a shift at all.

    Attributes:
        running_mean: (domains, channels).
        running_var: (domains, channels), unbiased.
        weight: γ, (domains, channels), or (1, channels) where it is shared; None without ``affine``.
        bias: β, likewise.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        channels: int,
        domains: int = 2,
        *,
        own_affine: bool = True,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
    ) -> None:
        super().__init__(channels, eps, momentum, affine)
        if domains < 1:
            raise SkyshiftError(f"domains is {domains}; it must be at least 1")
        self.domains = domains
        self.running_mean = torch.zeros(domains, channels)
        self.running_var = torch.ones(domains, channels)
        self.num_batches_tracked = torch.zeros(domains, dtype=torch.long)
        if affine:
            pairs = domains if own_affine else 1
            self.weight = nn.Parameter(torch.ones(pairs, channels))
            self.bias = nn.Parameter(torch.zeros(pairs, channels))
        self.drop: nn.Module = nn.Identity()
        self.act: nn.Module = nn.Identity()

    @classmethod
    def from_batch_norm(cls, layer: nn.BatchNorm2d, domains: int, own_affine: bool) -> "DomainBatchNorm2d":
        """What an ordinary layer has learned, as the beginning of every domain.

        Args:
            layer: Also timm's with an activation, which is kept.
            domains: As above.
            own_affine: As above.

        Raises:
            SkyshiftError: It keeps no running statistics.
        """
        if layer.running_mean is None or layer.running_var is None or layer.num_batches_tracked is None:
            raise SkyshiftError(
                "a batch normalisation without running statistics (track_running_stats=False) has nothing that could "
                "be each domain's own; make it with track_running_stats=True"
            )
        new = cls(
            layer.num_features,
            domains,
            own_affine=own_affine,
            eps=layer.eps,
            momentum=layer.momentum,
            affine=layer.affine,
        ).to(layer.running_mean)
        with torch.no_grad():
            for name in ("weight", "bias") if layer.affine else ():
                mine, old = getattr(new, name), getattr(layer, name)
                mine.copy_(old.expand_as(mine)).requires_grad_(old.requires_grad)
            for name in ("running_mean", "running_var"):
                getattr(new, name).copy_(getattr(layer, name).expand(domains, -1))
            new.num_batches_tracked.fill_(int(layer.num_batches_tracked))
        new.drop, new.act = getattr(layer, "drop", new.drop), getattr(layer, "act", new.act)
        return new.train(layer.training)

    def _current(self) -> int:
        if self.domains == 1:
            return 0
        domain = _domain.get(None)
        if domain is None or not 0 <= domain < self.domains:
            said = "nobody has said of which" if domain is None else f"these are said to be of domain {domain}"
            raise SkyshiftError(
                f"maps are normalised by their domain, one of {self.domains}, and {said}; call the encoder with its "
                "maps and their domain, or the network below within skyshift.adapt.domain_norm.in_domain(domain)"
            )
        return domain

    def forward(self, maps: Tensor) -> Tensor:
        """Normalised maps (n, channels, h, w), all of the current domain."""
        self._check_input_dim(maps)
        domain = self._current()
        pair = min(domain, len(self.weight) - 1) if self.affine else 0
        weight, bias = (self.weight[pair], self.bias[pair]) if self.affine else (None, None)
        running_mean, running_var = self.running_mean[domain], self.running_var[domain]  # views, which training updates
        if not self.training:
            out = F.batch_norm(maps, running_mean, running_var, weight, bias, False, 0.0, self.eps)
        else:
            factor = self._count(domain)
            if processes() > 1:
                out = self._over_processes(maps, domain, factor, weight, bias)
            else:
                out = F.batch_norm(maps, running_mean, running_var, weight, bias, True, factor, self.eps)
        result: Tensor = self.act(self.drop(out))
        return result

    def _count(self, domain: int) -> float:
        """Count a batch; the weight that it has in the running statistics."""
        self.num_batches_tracked[domain] += 1
        return 1.0 / float(self.num_batches_tracked[domain]) if self.momentum is None else self.momentum

    def _over_processes(
        self, maps: Tensor, domain: int, factor: float, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """The same with the statistics of all processes' maps, in float32 at least."""
        from torch.distributed.nn.functional import all_reduce

        x = maps.to(torch.promote_types(maps.dtype, torch.float32))
        count = torch.full((1,), x.numel() // x.shape[1], dtype=x.dtype, device=x.device)
        sums = all_reduce(torch.cat([x.sum((0, 2, 3)), count]))
        n = sums[-1].detach()
        mean = sums[:-1] / n
        centred = x - mean[:, None, None]
        variance = all_reduce((centred**2).sum((0, 2, 3))) / n
        with torch.no_grad():
            unbiased = variance * (n / (n - 1).clamp(min=1))
            self.running_mean[domain].lerp_(mean.to(self.running_mean.dtype), factor)
            self.running_var[domain].lerp_(unbiased.to(self.running_var.dtype), factor)
        scale = torch.rsqrt(variance + self.eps) if weight is None else weight * torch.rsqrt(variance + self.eps)
        out = centred * scale[:, None, None]
        return (out if bias is None else out + bias[:, None, None]).to(maps.dtype)

    def extra_repr(self) -> str:
        """With the number of domains."""
        return f"{super().extra_repr()}, domains={self.domains}"


def split_batch_norm(module: nn.Module, domains: int = 2, *, own_affine: bool = True) -> int:
    """Give every batch normalisation of a network statistics of each domain's own; in place.

    Each domain begins with what the layer has. timm's layers with an activation keep it.

    Args:
        module: The network; not itself a batch normalisation.
        domains: How many; with one, the layers stay as they are but for what several processes need.
        own_affine: Whether each domain has a scale and a shift of its own.

    Returns:
        Number of layers that were changed. A layer that stands in several places is one, and stays one.
    """
    made: dict[nn.Module, DomainBatchNorm2d] = {}
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, nn.BatchNorm2d) and not isinstance(child, DomainBatchNorm2d):
                if child not in made:
                    made[child] = DomainBatchNorm2d.from_batch_norm(child, domains, own_affine)
                setattr(parent, name, made[child])
    return len(made)
