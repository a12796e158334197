# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The best accuracy that a sum of single-modality scores can reach on the task of `make_interaction`.

    python -m recipes.data.additive  # 34 s of computing

An additive late fusion gives class c the score `text_c(operation) + image_c(drawn) + audio_c(spoken)`, with any three
functions. Two results, both on the exact distribution (every combination of operation and digits is equally frequent):

- Trained by maximum likelihood, it gets 0.10, which is chance. This is a theorem: for each operation, every value of
  one digit meets every label once, so the label is independent of each single modality, and all-zero scores already
  satisfy the condition of the (convex) optimum. `likelihood` fits a logistic regression as a check.
- Scores optimised for accuracy itself get more: the best that `search` found is 0.455, a lower bound. The search is
  hill climbing from random starts: one score at a time is set to its best value given the others, with decreasing
  noise. There is no proof that the optimum is below 0.5. An upper bound is 3/4: of the four cells {a, a + 5} x {b, b
  + 5} of an operation, two diagonal ones have one label and the other two another, so that the scores can favour the
  true label in three of the cells, but not in all four.
"""

import json

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import OneHotEncoder

from .make_interaction import OPERATIONS, result


def labels() -> np.ndarray:
    """Label of each combination: (operations, 10, 10)."""
    return np.array([[[result(name, a, b) for b in range(10)] for a in range(10)] for name in OPERATIONS])


def likelihood(table: np.ndarray) -> float:
    """Accuracy of the additive scores with maximum likelihood."""
    cells = OneHotEncoder().fit_transform(np.indices(table.shape).reshape(3, -1).T)
    return float(LogisticRegression(C=100, max_iter=1000).fit(cells, table.ravel()).score(cells, table.ravel()))


def search(table: np.ndarray, seed: int, sweeps: int, noise: float) -> float:
    """Accuracy of the best additive scores on one hill climb.

    Args:
        noise: initial noise of a step, in rows; it falls to zero during the climb.
    """
    rng = np.random.default_rng(seed)
    truth = table.ravel()
    values = np.indices(table.shape).reshape(3, -1)  # value of each modality in each cell
    scores = [rng.normal(size=(count, 10)) for count in table.shape]
    members = [[np.flatnonzero(values[m] == v) for v in range(count)] for m, count in enumerate(table.shape)]
    places = [(m, v, c) for m, count in enumerate(table.shape) for v in range(count) for c in range(10)]
    best = 0.0
    for sweep in range(sweeps):
        total = sum(scores[m][values[m]] for m in range(3))  # (cells, 10)
        best = max(best, float((total.argmax(1) == truth).mean()))
        spread = total.std()  # all scores drift during the climb; accuracy does not depend on their scale
        scores, total = [score / spread for score in scores], total / spread
        level = noise * max(0.0, 1 - 1.3 * sweep / sweeps)
        for place in rng.permutation(len(places)):
            m, v, c = places[place]
            cells = members[m][v]
            step = best_step(total[cells], truth[cells], c, level, rng)
            scores[m][v, c] += step
            total[cells, c] += step
    return best


def best_step(total: np.ndarray, truth: np.ndarray, c: int, noise: float, rng: np.random.Generator) -> float:
    """The change of class c's score in all these cells (n, 10) that makes most of them right, up to noise."""
    others = total.copy()
    others[:, c] = -np.inf
    margin = others.max(1) - total[:, c]  # adding more makes c the winner of the cell
    is_class = truth == c
    lost = ~is_class & (others[np.arange(len(truth)), truth] == others.max(1))  # right until c wins
    turns = np.concatenate([margin[is_class], margin[lost]])
    if len(turns) == 0:
        return 0.0
    gains = np.concatenate([np.ones(is_class.sum()), -np.ones(lost.sum())])
    order = turns.argsort()
    turns = turns[order]
    right = np.concatenate([[0], gains[order].cumsum()])
    low, high = np.concatenate([[turns[0] - 1], turns]), np.concatenate([turns, [turns[-1] + 1]])
    right = np.where(high - low > 1e-9, right + noise * rng.gumbel(size=len(right)), -np.inf)
    interval = right.argmax()
    return float(rng.uniform(low[interval], high[interval]))


def main() -> None:
    table = labels()
    found = max(search(table, seed, 1000, noise) for noise in (0.3, 1.0) for seed in range(2))
    print(json.dumps({"chance": 0.1, "additive_likelihood": likelihood(table), "additive_search": round(found, 4)}))


if __name__ == "__main__":
    main()
