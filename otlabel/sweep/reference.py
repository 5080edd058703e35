"""One block of rows in plain torch, on any device: the definition that compiled sweeps are tested against.

What contract.py says, done when a function returns; blocks are tensors, results are written to NumPy arrays.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from otlabel.sources.base import as_stored
from otlabel.sweep.running import is_out_of_memory

HALVES_ADDED = 2048  # rows whose products are added up in halves, where nothing better is there


def upload(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A tensor on a device, for work that is asked for from now on: nothing waits for it to get there."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _u(block: torch.Tensor, potentials: np.ndarray) -> torch.Tensor:
    g = upload(potentials, block.device)
    return block.to(g.dtype) + g  # (n, K)


def _shifted(bits: torch.Tensor, places: int) -> torch.Tensor:
    """int64 bits moved to the right with zeros coming in; torch has no unsigned shift."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def _first_best(u: torch.Tensor) -> torch.Tensor:
    """The lowest index of each row's maximum; torch.argmax promises no particular one among ties."""
    classes = torch.arange(u.shape[1], device=u.device)
    return torch.where(u == u.amax(1, keepdim=True), classes, u.shape[1]).amin(1)


def sweep_block(
    block: torch.Tensor,
    potentials: np.ndarray,
    inverse_epsilon: float,
    weights: np.ndarray,
    row_exponent: float,
    labels: np.ndarray,
    row_mass: np.ndarray,
    mass: np.ndarray,
    counts: np.ndarray,
) -> tuple[float, float]:
    """Sums of weight * max u and weight * log sum exp((u - max u) / epsilon); the rest is written to the arrays.

    Labels, and how many units have each, are left out where their array is empty.
    """
    u = _u(block, potentials)
    top = u.amax(1, keepdim=True)
    e = torch.exp((u - top) * float(inverse_epsilon))
    total = e.sum(1, keepdim=True)
    weight = torch.ones(len(u), dtype=torch.float64) if weights.size == 0 else torch.from_numpy(weights)
    weight = weight.to(u.device)
    if labels.size or counts.size:
        best = _first_best(u).cpu().numpy()
        if labels.size:
            labels[:] = best
        if counts.size:
            counts += np.bincount(best, weights.astype(np.int64) if weights.size else None, len(counts)).astype(
                np.int64
            )
    own_mass = weight
    if row_exponent:
        own_mass = weight * torch.exp(
            row_exponent * (top[:, 0].double() + total[:, 0].double().log() / inverse_epsilon)
        )
        row_mass[:] = own_mass.cpu().numpy()
    mass += (own_mass @ (e / total).double()).cpu().numpy()
    return float(weight @ top[:, 0].double()), float(weight @ total[:, 0].double().log())


def plan_block(block: torch.Tensor, potentials: np.ndarray, inverse_epsilon: float, plan: np.ndarray) -> None:
    """Write softmax((scores + potentials) / epsilon) of every row."""
    plan[:] = torch.softmax(_u(block, potentials) * float(inverse_epsilon), 1).cpu().numpy()


def label_block(
    block: torch.Tensor, potentials: np.ndarray, labels: np.ndarray, best: np.ndarray, own: np.ndarray
) -> None:
    """Fill in labels that are -1; write max u and u at the label."""
    u = _u(block, potentials.astype(np.float64))
    given = torch.from_numpy(labels).to(u.device).long()
    chosen = torch.where(given < 0, _first_best(u), given)
    labels[:] = chosen.cpu().numpy()
    best[:] = u.amax(1).cpu().numpy()
    own[:] = u.gather(1, chosen[:, None])[:, 0].cpu().numpy()


def candidates_block(
    block: torch.Tensor, potentials: np.ndarray, labels: np.ndarray, slack: float, tie: float
) -> tuple[np.ndarray, ...]:
    """Correct labels that fall short by more than `tie`; list the rows with more than one class within `slack`."""
    u = _u(block, potentials.astype(np.float64))
    given = torch.from_numpy(labels).to(u.device).long()
    own = u.gather(1, given.clamp(min=0)[:, None])[:, 0]
    chosen = torch.where((given < 0) | (own < u.amax(1) - tie), _first_best(u), given)
    labels[:] = chosen.cpu().numpy()
    near = (u >= u.gather(1, chosen[:, None]) - slack) & (u > -torch.inf)
    sizes = near.sum(1)
    near &= (sizes > 1)[:, None]
    row, cls = near.nonzero(as_tuple=True)
    rows = (sizes > 1).nonzero()[:, 0]
    found = rows, sizes[rows], cls.int(), block[row, cls].double()
    return tuple(part.cpu().numpy() for part in found)


def near_block(
    block: torch.Tensor, potentials: np.ndarray, k: int, spans: float | np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, ...]:
    """The classes of each row whose u is no less than the k-th largest u - span, or u at any label (n, k) given.

    How many each row has, and, row after row, classes and scores as they are stored.
    """
    u = _u(block, potentials)
    kept = u - torch.as_tensor(spans, dtype=u.dtype, device=u.device)
    floor = torch.topk(kept, min(k, u.shape[1]), 1).values[:, -1:]
    if labels.size:
        given = torch.from_numpy(labels).to(u.device).long()
        at_labels = u.gather(1, given.clamp(min=0)).masked_fill(given < 0, torch.inf)
        floor = torch.minimum(floor, at_labels.amin(1, keepdim=True))
    near = (u >= floor) & (u > -torch.inf)
    row, cls = near.nonzero(as_tuple=True)
    return near.sum(1).cpu().numpy(), cls.int().cpu().numpy(), as_stored(block[row, cls].cpu())


def inspect_block(
    block: torch.Tensor, multipliers: np.ndarray, step: int, hashes: np.ndarray, tops: np.ndarray, bottoms: np.ndarray
) -> tuple[int, int]:
    """Write a hash of every `step`-th score, largest and smallest finite one of each row; count unusable ones."""
    u = block.double() if tops.dtype == np.float64 else block.float()
    forbidden = u == -torch.inf
    n_bad = int((u.isnan() | (u == torch.inf)).sum())
    top = u.amax(1)
    tops[:] = top.cpu().numpy()
    bottoms[:] = torch.where(forbidden, torch.inf, u).amin(1).cpu().numpy()
    integer = torch.int64 if u.dtype == torch.float64 else torch.int32
    bits = u.contiguous().view(integer).long()[:, ::step]  # sign-extended, as in the compiled sweep
    bits = bits ^ _shifted(bits, 32)
    bits = bits ^ _shifted(bits, 16)
    digest = (bits * torch.from_numpy(multipliers.view(np.int64)[::step].copy()).to(u.device)).sum(
        1
    )  # wraps modulo 2**64
    constant = (u == top[:, None]).all(1).cpu().numpy()
    hashes[:] = np.where(constant, np.uint64(0), digest.cpu().numpy().view(np.uint64))
    return n_bad, int(forbidden.sum())


def factors_block(
    block: torch.Tensor, rows: torch.Tensor, potentials: np.ndarray, inverse_epsilon: float, roots: torch.Tensor
) -> torch.Tensor:
    """Of the given rows (n,) of the block, roots (n,), at most 1, times the plan's rows: (n, K)."""
    plan = torch.softmax(_u(block[rows], potentials) * float(inverse_epsilon), 1)
    factors = plan.mul_(roots[:, None].to(plan.dtype))
    return factors.half() if block.device.type == "cuda" else factors


def products_of(factors: torch.Tensor) -> torch.Tensor:
    """factors^T factors, (K, K).

    Those of halves are added up in float32: independent errors of 5e-4 each, far below what sampling the rows leaves
    open.
    """
    if factors.dtype != torch.half:
        return (factors.T @ factors).double()
    if adds_halves_in_float32(factors.device):
        return torch.mm(factors.T, factors, out_dtype=torch.float32)
    # Sums that are rounded to halves themselves: of fewer rows each, so that less is lost.
    parts = (torch.mm(part.T, part).double() for part in factors.split(HALVES_ADDED))
    return sum(parts, torch.zeros((), dtype=torch.float64, device=factors.device))


@functools.cache
def adds_halves_in_float32(device: torch.device) -> bool:
    """Whether torch gives products of halves there as the float32 that they are added up in."""
    few = torch.zeros((16, 16), dtype=torch.half, device=device)
    try:
        torch.mm(few, few, out_dtype=torch.float32)
    except (TypeError, RuntimeError) as error:
        if is_out_of_memory(error):  # which says nothing of it
            raise
        return False
    return True


def sparse_plan_block(
    block: torch.Tensor, rows: np.ndarray, potentials: np.ndarray, inverse_epsilon: float, share: float
) -> tuple[np.ndarray, ...]:
    """Sizes, classes and values of the plan's entries above `share` of their row's largest, for the given rows."""
    plan = torch.softmax(_u(block[torch.from_numpy(rows).to(block.device)], potentials) * float(inverse_epsilon), 1)
    kept = plan > share * plan.amax(1, keepdim=True)
    found = kept.sum(1), kept.nonzero()[:, 1].int(), plan[kept].float()
    return tuple(part.cpu().numpy() for part in found)
