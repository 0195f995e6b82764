"""Which checkpoint of a run is best, and when to stop: early stopping on a value measured on validation data.

After every ``validate_every`` steps the averaged weights are judged. A value that is better than all before makes its
checkpoint the best one, which is kept whatever else is dropped and named in ``best.json``; ``patience`` validations in
a row without a better value end the run. What has been found is in every checkpoint, so that a resumed run decides as
the straight one would. A value that is not finite is never the best: where none of a run's values is, there is no best
checkpoint, which ends a run with ``patience`` with an error and is said at the end of one without.

References:
    Prechelt 1998, Early Stopping - But When?, doi:10.1007/3-540-49430-8_3.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from skyshift.files import write_json
from skyshift.naming import unknown
from skyshift.training import TrainingConfig, TrainingError


@dataclass
class Watch:
    """The best value so far.

    Attributes:
        monitor: Name of the value.
        direction: Of better: 1 larger, -1 smaller, 0 nearer to zero.
        patience: Validations in a row without a better one after which to stop; 0 for never.
        best: The best value; ``None`` before there is one.
        step: When it was found.
        since: Validations since then.
    """

    monitor: str
    direction: int
    patience: int
    best: float | None = None
    step: int = 0
    since: int = 0

    @classmethod
    def of(cls, training: TrainingConfig, directions: Mapping[str, int], able: bool) -> "Watch | None":
        """The watch that a configuration asks for.

        Args:
            training: The configuration.
            directions: Name to direction of better.
            able: Whether the stage can validate.

        Raises:
            TrainingError: There is nothing to validate with, or no such value.
        """
        if not training.validate_every:
            return None
        if not able:
            raise TrainingError(
                "training.validate_every: there is nothing to validate on; give the data a validation part "
                "(data.split.validation), or set it to 0"
            )
        if training.monitor not in directions:
            raise TrainingError(f"training.monitor: {unknown('validation value', training.monitor, directions)}")
        return cls(training.monitor, directions[training.monitor], training.patience)

    def _rank(self, value: float) -> float:
        return value * self.direction if self.direction else -abs(value)

    def see(self, step: int, value: float) -> bool:
        """Take a validation in; whether it is the best so far. A value that is not finite never is."""
        better = math.isfinite(value) and (self.best is None or self._rank(value) > self._rank(self.best))
        if better:
            self.best, self.step, self.since = value, step, 0
        else:
            self.since += 1
        return better

    @property
    def exhausted(self) -> bool:
        """Whether to stop."""
        return bool(self.patience) and self.since >= self.patience

    @property
    def hopeless(self) -> str:
        """What is wrong where no validation so far gave a finite value; empty where one did, or there was none."""
        if self.best is not None or not self.since:
            return ""
        return (
            f"training.monitor: {self.monitor} was not finite in any of {self.since} validations, so that no "
            "checkpoint is the best. Look at the validation values in log.jsonl: choose another monitor if it alone is "
            "missing; else lower training.learning_rate or set training.clip"
        )

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"monitor": self.monitor, "best": self.best, "step": self.step, "since": self.since}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Undo :meth:`state`."""
        self.best, self.step, self.since = state["best"], state["step"], state["since"]

    def mark(self, run: Path) -> None:
        """Name the best checkpoint in the run's ``best.json``."""
        if self.best is not None:
            facts = {key: value for key, value in asdict(self).items() if key in ("monitor", "best", "step")}
            write_json(run / "best.json", {"checkpoint": f"step_{self.step:07d}", **facts})
