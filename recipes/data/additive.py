# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""How far a sum of single-modality scores can get on the task of `make_interaction`.

    python -m recipes.data.additive  # 34 s of computing

A late fusion that adds gives class c the score `text_c(operation) + image_c(drawn) + audio_c(heard)`, with any three
functions. Two answers, both on the exact distribution (every combination of operation and digits equally often):

- trained by likelihood it gets 0.10, chance, and that is a theorem: within each operation every value of one digit
  meets every label once, so the label is independent of each single modality, and scores that are all zero already
  meet the condition of the (convex) optimum. `likelihood` fits a logistic regression to see it.
- scores chosen for accuracy itself get more: 0.455 is the best that `search` found, which bounds it from below. It is
  hill climbing from random starts, one score at a time to its best value given the others, with falling noise. No
  proof puts the best below 0.5. From above 3/4 is sure:
  of the four cells {a, a + 5} x {b, b + 5} of an operation two hold one label and two another, crosswise, so that
  the scores of three may be in favour of the true label but not of all four.
"""

import json

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import OneHotEncoder

from .make_interaction import OPERATIONS, result


def labels() -> np.ndarray:
    """The label of each combination: (operations, 10, 10)."""
    return np.array([[[result(name, a, b) for b in range(10)] for a in range(10)] for name in OPERATIONS])


def likelihood(table: np.ndarray) -> float:
    """Accuracy of the additive scores of greatest likelihood."""
    cells = OneHotEncoder().fit_transform(np.indices(table.shape).reshape(3, -1).T)
    return float(LogisticRegression(C=100, max_iter=1000).fit(cells, table.ravel()).score(cells, table.ravel()))


def search(table: np.ndarray, seed: int, sweeps: int, noise: float) -> float:
    """Accuracy of the best additive scores that one climb meets; `noise`, in rows, falls to zero on the way."""
    chance = np.random.default_rng(seed)
    truth = table.ravel()
    values = np.indices(table.shape).reshape(3, -1)  # of each modality in each cell
    scores = [chance.normal(size=(count, 10)) for count in table.shape]
    members = [[np.flatnonzero(values[m] == v) for v in range(count)] for m, count in enumerate(table.shape)]
    places = [(m, v, c) for m, count in enumerate(table.shape) for v in range(count) for c in range(10)]
    best = 0.0
    for sweep in range(sweeps):
        total = sum(scores[m][values[m]] for m in range(3))  # (cells, 10)
        best = max(best, float((total.argmax(1) == truth).mean()))
        spread = total.std()  # the climb lets all scores drift; accuracy does not depend on their scale
        scores, total = [score / spread for score in scores], total / spread
        level = noise * max(0.0, 1 - 1.3 * sweep / sweeps)
        for place in chance.permutation(len(places)):
            m, v, c = places[place]
            cells = members[m][v]
            step = best_step(total[cells], truth[cells], c, level, chance)
            scores[m][v, c] += step
            total[cells, c] += step
    return best


def best_step(total: np.ndarray, truth: np.ndarray, c: int, noise: float, chance: np.random.Generator) -> float:
    """What to add to the score of class c in all these cells (n, 10), so that most are right, give or take noise."""
    others = total.copy()
    others[:, c] = -np.inf
    margin = others.max(1) - total[:, c]  # adding more makes c the winner of the cell
    own = truth == c
    lost = ~own & (others[np.arange(len(truth)), truth] == others.max(1))  # right until c wins
    turns = np.concatenate([margin[own], margin[lost]])
    if len(turns) == 0:
        return 0.0
    gains = np.concatenate([np.ones(own.sum()), -np.ones(lost.sum())])
    order = turns.argsort()
    turns = turns[order]
    right = np.concatenate([[0], gains[order].cumsum()])
    low, high = np.concatenate([[turns[0] - 1], turns]), np.concatenate([turns, [turns[-1] + 1]])
    right = np.where(high - low > 1e-9, right + noise * chance.gumbel(size=len(right)), -np.inf)
    interval = right.argmax()
    return float(chance.uniform(low[interval], high[interval]))


def main() -> None:
    table = labels()
    found = max(search(table, seed, 1000, noise) for noise in (0.3, 1.0) for seed in range(2))
    print(json.dumps({"chance": 0.1, "additive_likelihood": likelihood(table), "additive_search": round(found, 4)}))


if __name__ == "__main__":
    main()
