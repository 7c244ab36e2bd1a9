"""Trains the quantile networks that `scheduler.learned` evaluates. The only module that uses torch.

Run as `python -m astraea_local.learning.train --history PATH --out DIR [--model NAME]`: it yields to
everything else, takes one core for some seconds, and writes one file.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from astraea_local.history import HistoryError, SegmentRecord
from astraea_local.learning import LearnedUnavailable
from astraea_local.learning.dataset import Rows, build, read
from astraea_local.learning.evaluate import LEVELS, MIN_ROWS, Report, evaluate
from astraea_local.learning.store import Arrays, file_name, save
from astraea_local.scheduler.learned import MOST_DEVIATION, Array, LearnedModel, LearnedPair

if TYPE_CHECKING:
    import torch

DONE, FAILED, TOO_FEW, NO_TORCH = 0, 1, 3, 4
"""Exit codes; 2 is argparse's own."""

_HIDDEN = 32
_BATCH = 128
_LEARNING_RATE = 3e-3
# Of the weights, not of the biases, which hold the quantiles of all targets.
_DECAY = 0.1
_MOST_EPOCHS = 300
# Training ends when the validation loss has not fallen for so many epochs.
_PATIENCE = 20
# Predictions stay within the targets seen, widened on both sides by this, a logarithm.
_WIDER = 1.0
# Features that hardly vary are not magnified: what a mean does while it settles is no pattern.
_LEAST_DEVIATION = 0.1
# Least distance of two quantiles at first; equal ones have no inverse of softplus.
_LEAST_STEP = 1e-3
_LOWEST_NICE = 19


@dataclass(frozen=True)
class Trained:
    """What came of one history: a network for each target that has rows enough."""

    report: Report
    networks: dict[str, Arrays]
    """By target, `output` or `wait`; whether it is any good is for the report to say."""


def learn(records: Sequence[SegmentRecord], model: str | None, *, seed: int = 0) -> Trained:
    """Trains on the records, oldest first, and compares; the same seed gives the same networks.

    Raises `LearnedUnavailable` when torch is not installed.
    """
    dataset = build(records)
    named = {"output": dataset.outputs, "wait": dataset.waits}
    networks = {name: fit(rows, seed=seed) for name, rows in named.items() if len(rows) >= MIN_ROWS}
    models = {name: LearnedModel(arrays) for name, arrays in networks.items()}
    pair = LearnedPair(models.get("output"), models.get("wait"))
    return Trained(evaluate(records, dataset, model, pair), networks)


def fit(rows: Rows, *, seed: int = 0) -> Arrays:
    """Trains one network on all but the held-out rows; arrays as `LearnedModel` takes them.

    It takes `MIN_ROWS` rows. The same seed gives the same network. Raises `LearnedUnavailable` when torch is
    not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise LearnedUnavailable from error
    # A second thread gains nothing with networks this small, and the cores belong to the server.
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    training, validation, _ = rows.split()
    fixed, start = _initial(training, np.random.default_rng(seed))
    network = {name: torch.tensor(array, requires_grad=True) for name, array in start.items()}
    center, scale = (torch.tensor(fixed[name]) for name in ("center", "scale"))
    features, unseen = (
        ((torch.tensor(part.features) - center) * scale).clamp(-MOST_DEVIATION, MOST_DEVIATION)
        for part in (training, validation)
    )
    targets, truth = (torch.tensor(part.targets) for part in (training, validation))
    groups = [
        {"params": [tensor], "weight_decay": 0.0 if name.startswith("b") else _DECAY}
        for name, tensor in network.items()
    ]
    optimizer = torch.optim.AdamW(groups, lr=_LEARNING_RATE)
    best_loss, best_epoch = float("inf"), 0
    best = {name: tensor.detach().clone() for name, tensor in network.items()}
    for epoch in range(_MOST_EPOCHS):
        with torch.no_grad():
            loss = float(_loss(forward(network, unseen), truth))
        if loss < best_loss:
            best_loss, best_epoch = loss, epoch
            best = {name: tensor.detach().clone() for name, tensor in network.items()}
        elif epoch - best_epoch >= _PATIENCE:
            break
        order = torch.randperm(len(targets), generator=generator)
        for begin in range(0, len(order), _BATCH):
            chosen = order[begin : begin + _BATCH]
            optimizer.zero_grad()
            torch.autograd.backward(_loss(forward(network, features[chosen]), targets[chosen]))
            optimizer.step()
    return {**fixed, **{name: tensor.numpy() for name, tensor in best.items()}}


def forward(network: "dict[str, torch.Tensor]", features: "torch.Tensor") -> "torch.Tensor":
    """Logarithms of the quantiles (N, Q) for standardised features (N, F)."""
    import torch

    hidden = torch.tanh(features @ network["w1"] + network["b1"])
    hidden = torch.tanh(hidden @ network["w2"] + network["b2"])
    out = hidden @ network["w3"] + features @ network["linear"] + network["b3"]
    steps = torch.nn.functional.softplus(out[:, 1:])
    return torch.cumsum(torch.cat([out[:, :1], steps], dim=1), dim=1)


def _loss(quantiles: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
    import torch

    miss = targets[:, None] - quantiles
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    return torch.maximum(levels * miss, (levels - 1.0) * miss).mean()


def _initial(training: Rows, rng: np.random.Generator) -> tuple[Arrays, Arrays]:
    """Constants, and a network that predicts the quantiles of all targets whatever the features."""
    count, quantiles = training.features.shape[1], len(LEVELS)
    deviation = training.features.std(axis=0)
    fixed: Arrays = {
        "center": training.features.mean(axis=0),
        "scale": 1.0 / np.maximum(deviation, _LEAST_DEVIATION),
        "bounds": np.array([training.targets.min() - _WIDER, training.targets.max() + _WIDER]),
        "levels": np.array(LEVELS),
    }
    marginal: Array = np.quantile(training.targets, LEVELS)
    steps = np.maximum(np.diff(marginal), _LEAST_STEP)
    network: Arrays = {
        "w1": rng.normal(0.0, count**-0.5, (count, _HIDDEN)),
        "b1": np.zeros(_HIDDEN),
        "w2": rng.normal(0.0, _HIDDEN**-0.5, (_HIDDEN, _HIDDEN)),
        "b2": np.zeros(_HIDDEN),
        "w3": np.zeros((_HIDDEN, quantiles)),
        # The inverse of softplus.
        "b3": np.concatenate([marginal[:1], np.log(np.expm1(steps))]),
        "linear": np.zeros((count, quantiles)),
    }
    return fixed, network


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code and says in one line what happened."""
    parser = argparse.ArgumentParser(prog="python -m astraea_local.learning.train", description=__doc__)
    parser.add_argument("--history", type=Path, required=True, help="SQLite file of recorded segments")
    parser.add_argument("--out", type=Path, required=True, help="folder of the trained file")
    parser.add_argument("--model", help="only segments of this model; all without it")
    options = parser.parse_args(arguments)
    os.nice(_LOWEST_NICE)
    try:
        records = read(options.history, options.model)
        if len(records) < MIN_ROWS:
            print(f"{len(records)} segments are recorded, {MIN_ROWS} are needed", file=sys.stderr)
            return TOO_FEW
        trained = learn(records, options.model)
        path = options.out / file_name(options.model)
        save(path, trained.report, trained.networks)
    except LearnedUnavailable as error:
        print(error, file=sys.stderr)
        return NO_TORCH
    except (HistoryError, OSError) as error:
        print(error, file=sys.stderr)
        return FAILED
    won = [target.target for target in trained.report.targets if target.wins]
    print(f"{path}: {len(records)} segments; better than what is used now: {', '.join(won) or 'nothing'}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
