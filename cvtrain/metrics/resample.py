"""How far a figure is from chance: bootstrap intervals (Efron and Tibshirani 1993, ch. 13), and
tests of two networks that have seen the same samples.
"""

from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
FEWEST = 100
WORK = 2e9  # numbers that all resamples together may touch: some ten seconds
SHARE = 0.95  # of an interval

Floats = NDArray[np.float64]


def resamples_for(size: int) -> int:
    """Fewer than RESAMPLES where each has to touch very many numbers."""
    return int(min(RESAMPLES, max(FEWEST, WORK // max(size, 1))))


def resampled(samples: int, count: int, *, seed: int = 0) -> Iterator[Floats]:
    """Of each resample how often it has each sample, `[samples]`; the same ones each time."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        drawn = generator.integers(samples, size=samples)
        yield np.bincount(drawn, minlength=samples).astype(np.float64)


def bootstrap(figures: Callable[[Floats], Floats], samples: int, count: int) -> Floats:
    """`[count, F]`: the F figures that `figures` computes of each resample's counts."""
    return np.array([figures(counts) for counts in resampled(samples, count)])


def interval(draws: Floats) -> tuple[float, float]:
    """The middle SHARE of a figure's draws `[count]`; of those that are finite."""
    tails = [100 * (1 - SHARE) / 2, 100 * (1 + SHARE) / 2]
    finite = draws[np.isfinite(draws)]
    low, high = np.percentile(finite, tails) if finite.size else (np.nan, np.nan)
    return float(low), float(high)


def paired_p(differences: Floats) -> float:
    """Two-sided, of the differences `[count]` between two networks, resample by resample.

    Never 0: a resample more on either side counts along.
    """
    finite = differences[np.isfinite(differences)]
    below, above = (finite <= 0).sum(), (finite >= 0).sum()
    return float(min(1.0, 2 * (min(below, above) + 1) / (len(finite) + 1)))


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact and two-sided: how probable a split at least as uneven is where each of the samples
    that one network alone has wrong is as likely either's (McNemar 1947). By whole numbers.
    """
    total, fewer = only_first + only_second, min(only_first, only_second)
    tail = ways = 1
    for k in range(fewer):  # ways is math.comb(total, k + 1), from the one before
        ways = ways * (total - k) // (k + 1)
        tail += ways
    return float(min(Fraction(2 * tail, 2**total), Fraction(1)))
