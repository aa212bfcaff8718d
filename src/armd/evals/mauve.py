"""MAUVE: how far the texts of a model lie from those of people (Pillutla et al., 2021, arXiv 2102.01454).

A text becomes a point, the last hidden row of an evaluator; the points of both sides become histograms P and Q over
common clusters; and both are compared with every mixture R = w P + (1 - w) Q. The points

    (exp(-c KL(Q | R)), exp(-c KL(P | R))),    0 < w < 1,

make a curve from (1, 0) to (0, 1), and MAUVE is the area under it: 1 for equal histograms, near 0 for disjoint ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from armd.data import TokenDataset, Tokenizer
from armd.errors import UserError
from armd.evals.judge import Judge

SCALE = 5.0
"""c of the paper."""
POINTS = 25
"""Mixtures on the curve, as many as published numbers have."""


def frontier_area(
    p: Float[np.ndarray, "K"], q: Float[np.ndarray, "K"], scale: float = SCALE, points: int = POINTS
) -> float:
    """The area under the divergence curve of two histograms, by trapezoids between `points` mixtures."""
    curve = [(1.0, 0.0)]
    for w in np.linspace(1e-6, 1 - 1e-6, points):
        mixture = w * p + (1 - w) * q
        curve.append((math.exp(-scale * divergence(q, mixture)), math.exp(-scale * divergence(p, mixture))))
    x, y = np.array([*curve, (0.0, 1.0)]).T
    return float(np.sum((x[:-1] - x[1:]) * (y[:-1] + y[1:]) / 2))


def divergence(p: Float[np.ndarray, "K"], q: Float[np.ndarray, "K"]) -> float:
    """KL(p | q) in nats; q is positive where p is."""
    held = p > 0
    return float(np.sum(p[held] * np.log(p[held] / q[held])))


def mauve(human: Float[Tensor, "P _"], model: Float[Tensor, "Q _"], buckets: int | None = None, seed: int = 0) -> float:
    """MAUVE of the points of people's texts, (P, D), and of a model's, (Q, D); nan if one side has fewer than two.

    Rows are scaled to length 1, reduced to the principal components that hold 90% of the variance, and clustered by
    k-means, the best of 5 starts.

    Args:
        buckets: clusters; default: `buckets_of` the sizes of both sides.
        seed: of k-means.

    Raises:
        UserError: scikit-learn is not installed.
    """
    decomposition, cluster = _scikit_learn()
    if min(len(human), len(model)) < 2:
        return math.nan
    rows = torch.nn.functional.normalize(torch.cat((human, model)).double(), dim=1).numpy()
    different = len(np.unique(rows.round(6), axis=0))
    if different == 1:
        return 1.0
    reduced = decomposition.PCA(0.9, svd_solver="full").fit_transform(rows)
    most = min(buckets or buckets_of(len(human), len(model)), different)
    labels = cluster.KMeans(most, n_init=5, max_iter=500, random_state=seed).fit_predict(reduced)
    p, q = (np.bincount(part, minlength=most) / len(part) for part in (labels[: len(human)], labels[len(human) :]))
    return frontier_area(p, q)


def buckets_of(human: int, model: int) -> int:
    """The published number of clusters: a tenth of the texts of the smaller side."""
    return max(2, round(min(human, model) / 10))


def check_mauve() -> None:
    """Refuse, before anything is loaded, what could not be finished."""
    _scikit_learn()


def _scikit_learn() -> tuple[Any, Any]:
    try:
        from sklearn import cluster, decomposition
    except ImportError:
        raise UserError("MAUVE needs scikit-learn; pip install 'armd[evals]'") from None
    return decomposition, cluster


# ---- the texts of people ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Human:
    """What people wrote, as an evaluator sees it: where it is from, and a point a text."""

    source: str
    points: Float[Tensor, "P D"]

    def words(self, judge: Judge, texts: int) -> str:
        """The terms of a comparison with this many texts of a model, for a protocol."""
        people = len(self.points)
        return (
            f"MAUVE: against {people:,} held-out texts of {self.source}, as long and cut alike; last hidden row "
            f"under {judge.name}, {buckets_of(people, texts):,} clusters, c = {SCALE:g}, {POINTS} mixtures, "
            "biased by the number of texts, and so to be compared at equal ones only"
        )


def held_out_texts(dataset: TokenDataset, tokenizer: Tokenizer, count: int) -> list[str]:
    """At most `count` texts, spread over a split, each cut at its first end of text as a model's are."""
    windows = dataset.eval_windows()
    places = np.linspace(0, windows - 1, min(count, windows)).round().astype(int)
    rows = [dataset.eval_batch(int(place), 1)[0].tolist() for place in places]
    return [tokenizer.decode(until_end(row, dataset.eos_id)) for row in rows]


def until_end(row: list[int], eos: int | None) -> list[int]:
    """The tokens of a text before its first end of text."""
    return row[: row.index(eos)] if eos in row else row
