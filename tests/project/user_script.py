"""What a user may write, and what type checkers are to make of it: arrays in, arrays out; tensors in, tensors out."""

from __future__ import annotations

from typing import Any, assert_type

import numpy as np
import torch

from otlabel import Assignment, BalancedKMeans, Certificate, Range, certify, curate, lp_assign, sinkhorn_assign


def of_arrays(scores: np.ndarray) -> np.ndarray:
    result = sinkhorn_assign(scores, classes=Range(lo=0.05, hi=0.2), epsilon=0.1, rounding="argmax")
    assert_type(result, Assignment[np.ndarray])
    assert_type(result.potentials, np.ndarray)
    assert_type(certify(scores, result.labels), Certificate[np.ndarray])
    assert_type(result.proof.counts, np.ndarray)
    assert_type(result.soft_labels(scores), np.ndarray)
    return result.predict(scores[:5])


def of_tensors(scores: torch.Tensor) -> torch.Tensor:
    result = sinkhorn_assign(scores, abstain=0.1, progress=True, init=None)
    assert_type(result, Assignment[torch.Tensor])
    assert_type(result.labels, torch.Tensor)
    assert_type(sinkhorn_assign([scores, scores]).counts, torch.Tensor)
    assert_type(lp_assign(scores).labels, torch.Tensor)
    assert_type(certify(scores, result.labels).counts, torch.Tensor)
    loss = torch.nn.functional.cross_entropy(scores, result.labels)
    assert_type(loss, torch.Tensor)
    return result.plan(scores)


def of_anything(scores: Any) -> Any:
    return sinkhorn_assign(scores).labels.sum()


def of_chosen(features: np.ndarray, vectors: torch.Tensor) -> torch.Tensor:
    assert_type(curate(features, 10).indices, np.ndarray)
    assert_type(curate("features.npy", 10, levels=(30, 5)).indices, np.ndarray)
    assert_type(curate([vectors, vectors], 10, resample=5).indices, torch.Tensor)
    return vectors[curate(vectors, 10, seed=1).indices]


def of_features(features: np.ndarray) -> np.ndarray:
    assert_type(BalancedKMeans(8).fit(features), BalancedKMeans)
    return BalancedKMeans(8).fit(features).predict(features)


def of_files(path: str) -> Assignment:
    assert_type(sinkhorn_assign(path).labels, np.ndarray)
    assert_type(sinkhorn_assign([path, path]).labels, np.ndarray)
    result: Assignment = sinkhorn_assign(path, init=Assignment.load("result.npz"))
    print(result.summary(), result.labels.max())
    return result


def wrong(scores: torch.Tensor) -> None:
    sinkhorn_assign(scores, epsilon="small")  # error
    sinkhorn_assign(scores, epsilonn=0.1)  # error
    sinkhorn_assign(scores.numpy()).labels.cuda()  # error
