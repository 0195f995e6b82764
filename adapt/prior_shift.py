"""Other class frequencies in the target than in the source, estimated without labels and corrected for.

A classifier trained where class k has frequency π_k says p(k | x). Where frequencies are q_k, and maps of one class
look the same on both sides, Bayes' rule gives

    p'(k | x) ∝ p(k | x) q_k / π_k

and the q that make unlabelled maps most likely are the fixed point of  q_k ← mean p'(k | x)  (expectation
maximisation). The step needs calibrated probabilities: take a temperature first.

References:
    Saerens, Latinne & Decaestecker 2002, Adjusting the Outputs of a Classifier to New a Priori Probabilities,
    doi:10.1162/089976602753284446.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from skyshift.errors import SkyshiftError

Values = NDArray[np.float64]


def estimate_prior(logits: NDArray[np.floating], source: NDArray[np.floating], iterations: int = 1000) -> Values:
    """Frequencies of the classes among unlabelled maps.

    Args:
        logits: (n, classes), calibrated.
        source: (classes,) frequencies that the classifier was trained with; all above 0.
        iterations: At the most; it ends where no frequency moves by more than 1e-9.

    Returns:
        (classes,) frequencies that sum to 1.

    Raises:
        SkyshiftError: A frequency of the source is not positive, or there is no map.
    """
    prior = np.asarray(source, np.float64)
    if not len(logits) or (prior <= 0).any():
        raise SkyshiftError("a prior is estimated from at least one map, with every class in the source")
    log_p = log_softmax(np.asarray(logits, np.float64), axis=1)
    prior = found = prior / prior.sum()
    for _ in range(iterations):
        posterior = softmax(log_p + np.log(np.maximum(found, 1e-12) / prior), axis=1)
        moved, found = found, posterior.mean(0)
        if np.abs(moved - found).max() < 1e-9:
            break
    return np.asarray(found)


def corrected(logits: NDArray[np.floating], source: NDArray[np.floating], target: NDArray[np.floating]) -> Values:
    """Logits for other frequencies of the classes.

    Args:
        logits: (n, classes).
        source: (classes,) frequencies that they were trained with.
        target: (classes,) frequencies where they are used.
    """
    shift = np.log(np.maximum(np.asarray(target, np.float64), 1e-12)) - np.log(np.asarray(source, np.float64))
    return np.asarray(logits, np.float64) + shift
