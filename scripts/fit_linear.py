"""Fits a linear classifier to features that `cvtrain features` wrote, and prints its test error.

    cvtrain features run=RUN layer=layer3 eval.split=train out=train.npz
    cvtrain features run=RUN layer=layer3 out=test.npz
    python scripts/fit_linear.py train.npz test.npz --decay 1e-3

Multinomial logistic regression by L-BFGS, on features scaled to mean 0 and variance 1.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def read(path: Path) -> tuple[Tensor, Tensor, list[str]]:
    """Features float64 [N, D], labels [N] and class names, of the samples whose label is known."""
    with np.load(path) as file:
        known = file["labels"] >= 0
        features = torch.from_numpy(file["features"][known]).double().flatten(1)
        return features, torch.from_numpy(file["labels"][known]), file["classes"].tolist()


def fit(features: Tensor, labels: Tensor, *, classes: int, decay: float) -> tuple[Tensor, Tensor]:
    """Weights [classes, D] and biases of the least cross-entropy plus decay/2 of the squares."""
    weights = torch.zeros(classes, features.shape[1], dtype=torch.float64, requires_grad=True)
    biases = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights, biases], max_iter=500, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(features @ weights.T + biases, labels)
        value = value + decay / 2 * weights.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach(), biases.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--decay", type=float, default=1e-3, help="of the weights' squares")
    arguments = parser.parse_args()
    features, labels, classes = read(arguments.train)
    test, expected, others = read(arguments.test)
    if classes != others or features.shape[1] != test.shape[1]:
        sys.exit("the two files are of different classes or layers")
    if not len(labels) or not len(expected):
        sys.exit("no labels are known: give features of a data set, or of a folder of classes")
    mean, std = features.mean(0), features.std(0).clamp_min(1e-8)
    weights, biases = fit(
        (features - mean) / std, labels, classes=len(classes), decay=arguments.decay
    )
    found = ((test - mean) / std @ weights.T + biases).argmax(1)
    wrong = (found != expected).double().mean().item()
    print(f"top1_err {100 * wrong:.2f} %  ({len(labels)} training, {len(expected)} test samples)")


if __name__ == "__main__":
    main()
