"""A memory bank: what the network last said of every target map of the training part.

Losses that compare a target map with all others read it instead of passing all maps through the network at each step.
It is indexed by the number of the view, so that a map is never compared with itself, and it is the same on every
process: each enters what all have gathered.

During an optimizer step the bank stays as the step found it. What the step's micro-batches and processes say is entered
when the step is over, so that they add up to one batch.

References:
    Wu, Xiong, Yu & Lin 2018, Unsupervised Feature Learning via Non-Parametric Instance Discrimination,
    arXiv:1805.01978.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from skyshift.adapt.gathering import gathered_constant
from skyshift.errors import SkyshiftError


class BankError(SkyshiftError):
    """A memory bank is asked for maps that it was not made for."""


class MemoryBank(nn.Module):
    """Named rows of numbers for each view. All are buffers: checkpoints hold them, and a resumed run goes on exactly.

    Args:
        widths: Name to numbers a view: ``MemoryBank(features=256, probabilities=3)``.
    """

    views: Tensor
    filled: Tensor

    def __init__(self, **widths: int) -> None:
        super().__init__()
        self.widths = widths
        self.register_buffer("views", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("filled", torch.zeros(0, dtype=torch.bool))
        for name, width in widths.items():
            self.register_buffer(name, torch.zeros(0, width))
        self._step = -1
        self._waiting: list[tuple[Tensor, dict[str, Tensor]]] = []
        self.register_state_dict_pre_hook(lambda bank, prefix, keep: bank.settle())

    def prepare(self, views: Tensor) -> None:
        """Make room, empty.

        Args:
            views: (n,) numbers of the target's training views, ascending.

        Raises:
            BankError: There are none, or they are not ascending.
        """
        views = torch.as_tensor(views, dtype=torch.int64)
        if not len(views) or bool((views[1:] <= views[:-1]).any()):
            raise BankError(
                f"a memory bank needs the numbers of the target's training views, ascending and each once, not {views}"
            )
        self._resize(len(views))
        self.views.copy_(views)

    def _resize(self, n: int) -> None:
        self._waiting = []
        for name, buffer in list(self.named_buffers()):
            setattr(self, name, torch.zeros(n, *buffer.shape[1:], dtype=buffer.dtype, device=buffer.device))

    def positions(self, views: Tensor) -> Tensor:
        """Rows of views.

        Args:
            views: (n,) numbers, in any order.

        Raises:
            BankError: A view has no row.
        """
        if not len(self.views):
            raise BankError("the memory bank was not prepared: call prepare(target_views) before training")
        rows = torch.searchsorted(self.views, views).clamp(max=len(self.views) - 1)
        absent = self.views[rows] != views
        if bool(absent.any()):
            raise BankError(
                f"view {int(views[absent][0])} of the target is not among the {len(self.views)} training views "
                f"({int(self.views[0])} to {int(self.views[-1])}) that the memory bank was made for"
            )
        return rows

    def begin(self, step: int) -> None:
        """Enter what earlier steps said; call it before reading.

        Args:
            step: Number of the optimizer step.
        """
        if step != self._step:
            self.settle()
            self._step = step

    def read(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Views that have been seen, and their numbers.

        Returns:
            (m,) view numbers, and name to (m, width).
        """
        return self.views[self.filled], {name: getattr(self, name)[self.filled] for name in self.widths}

    @torch.no_grad()
    def put(self, views: Tensor, **values: Tensor) -> None:
        """Keep what this process's micro-batch says, and the others', until the step is over.

        Args:
            views: (n,) numbers.
            values: Name to (n, width).

        Raises:
            BankError: A view has no row.
        """
        rows = gathered_constant(self.positions(views))
        self._waiting.append((rows, {name: gathered_constant(values[name].detach().float()) for name in self.widths}))

    @torch.no_grad()
    def settle(self) -> None:
        """Enter what waits. Of a view that was seen twice in a step, the last counts."""
        if not self._waiting:
            return
        rows, order = torch.cat([rows for rows, _ in self._waiting]).sort(stable=True)
        last = torch.ones_like(rows, dtype=torch.bool)
        last[:-1] = rows[1:] != rows[:-1]
        rows, order = rows[last], order[last]
        self.filled[rows] = True
        for name in self.widths:
            getattr(self, name)[rows] = torch.cat([values[name] for _, values in self._waiting])[order]
        self._waiting = []

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, metadata: Any, strict: bool, missing: list[str],
        unexpected: list[str], errors: list[str],
    ) -> None:  # fmt: skip
        """A bank without room takes what was saved; one that was made for other views refuses it."""
        saved = state_dict.get(f"{prefix}views")
        if saved is not None:
            if not len(self.views):
                self._resize(len(saved))
            elif not torch.equal(self.views.cpu(), saved.cpu()):
                errors.append(
                    f"the memory bank was filled from {len(saved)} training views of the target, this run has "
                    f"{len(self.views)}, or others: train on the same target and split"
                )
                return
        self._waiting, self._step = [], -1
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
