"""Soft assignments of one batch within a training step: what SwAV and DINO call distributed_sinkhorn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch

from otlabel.errors import InvalidMassError, InvalidScoresError
from otlabel.marginals import class_shares
from otlabel.sources import as_matrix, by_class, is_foreign, plain_tensor
from otlabel.sources.given import with_unit_sum
from otlabel.sweep.running import has_triton

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


FLOOR = 1e-30  # of the largest product in a sum: above it, underflow of float32 has taken less than 1e-7 of the sum
ADDED_ROWS = 128  # by one product of a matrix with a vector, which adds them one after the other


@torch.no_grad()
def soft_assign(
    logits: Any,
    epsilon: float | torch.Tensor,
    n_iterations: int = 3,
    group: ProcessGroup | None = None,
    *,
    class_mass: Any = None,
) -> Any:
    """Soft assignments of a batch whose classes take nearly the same mass, by a few Sinkhorn iterations.

        Q_ik = exp((s_ik + g_k) / epsilon) / sum_j exp((s_ij + g_j) / epsilon)

    Each iteration divides every class by its mass over the batch and then every row by its sum; it is the batch version
    of the problem that `sinkhorn_assign` solves to the end. Everything stays on the device of the logits, nothing waits
    for it, and a compiled training step may contain it, whose epsilon may follow a schedule. Logits are shifted by the
    largest one of each row, and logarithms take over wherever exponentials would lose a class or a row to underflow:
    nothing overflows, and nothing is lost.

    Args:
        logits: (B, K) scores of the samples of this process, of any floating type, the larger the better: for SwAV and
            DINO the cosines with the prototypes, not yet divided by epsilon. A constant added to all of them changes
            nothing; one added to a row gives it more weight in the first iteration, and in the limit changes nothing.
            -inf forbids a pair; a row of nothing but -inf gives zeros. A row with NaN or +inf comes out as NaN, all of
            it, so that the loss shows it; the others get what they would get without that row. (..., B, K) are several
            batches, heads or positions, each balanced by itself.
        epsilon: regularisation in the units of the logits (.05 in SwAV and DINO): the smaller, the harder the labels.
            A number, or a tensor with one. A compiled step that is given another number each time is compiled once for
            the first and once for all others. What a tensor holds is not looked at, since that would wait for the
            device: if it is no positive number, everything comes out as NaN.
        n_iterations: how often class masses are brought to 1/K; the default of 3 is SwAV's. Rows come last, so that
            they sum to 1 in any case, and class masses are the nearer to 1/K the more iterations there are. 0 is the
            softmax of logits / epsilon.
        group: processes of `torch.distributed` whose rows together are the batch: all of them call this at the same
            time, with as many rows each as they like. None: the batch is this process's alone. For all processes,
            pass `torch.distributed.group.WORLD`.
        class_mass: (K,) shares that sum to 1, or sizes that sum to B, to which classes are brought in place of 1/K: a
            prior. A class of mass 0 gets nothing, as if it were forbidden. Of a tensor on a device, or in a compiled
            step, what it holds is not looked at: pass shares.

    Returns:
        (..., B, K) float32 on the same device, without a gradient; rows are not negative and sum to 1. A NumPy array
        where logits are no tensor.

    Raises:
        InvalidScoresError: logits that are no matrix (or several) of floating numbers.
        InvalidMassError: a class_mass of wrong length, sign or sum.
        ValueError: an epsilon that is not positive (or not one number, as a tensor), or iterations below 0.

    Source: Caron, Misra, Mairal, Goyal, Bojanowski, Joulin, "Unsupervised learning of visual features by contrasting
        cluster assignments" (SwAV), NeurIPS 2020, section 3 and appendix A; the whole-data version: Asano, Rupprecht,
        Vedaldi, ICLR 2020. The iterations: Cuturi, NeurIPS 2013.
    """
    if not isinstance(logits, torch.Tensor):
        return soft_assign(_as_tensor(logits), epsilon, n_iterations, group, class_mass=class_mass).numpy()
    if logits.layout != torch.strided or logits.ndim < 2 or not logits.is_floating_point():
        _refuse(logits)
    epsilon = _checked_epsilon(epsilon)
    if n_iterations < 0:
        raise ValueError(f"n_iterations is {n_iterations}; pass 0 (the softmax) or more (3 in SwAV)")
    logits, mass = logits.detach(), None
    if class_mass is not None:
        mass = _checked_mass(class_mass, logits)
        logits = logits.masked_fill(mass == 0, -torch.inf)
    if not torch.compiler.is_compiling() and logits.numel() and n_iterations:
        if logits.device.type == "cpu" and group is None:
            codes = _by_scaling(logits, epsilon, n_iterations, mass)
            if codes is not None:
                return codes
        elif logits.is_cuda and logits.ndim == 2 and has_triton():
            return _by_kernels(logits, epsilon, n_iterations, group, mass)
    return _in_plain_torch(logits, epsilon, n_iterations, group, mass)


def _by_scaling(
    logits: torch.Tensor, epsilon: float | torch.Tensor, n_iterations: int, mass: torch.Tensor | None
) -> torch.Tensor | None:
    """One exponential, then products with vectors; None where a sum is so small that underflow may have made it so.

    Rows of NaN or inf, and classes that nobody may have, show in such sums as well.
    """
    numbers = logits.to(torch.promote_types(logits.dtype, torch.float32))
    top = numbers.amax(-1, keepdim=True)  # (..., B, 1)
    plan = (numbers - top).div_(epsilon).exp_()  # (..., B, K)
    rows = top.sub_(top.amax(-2, keepdim=True)).div_(epsilon).exp_()
    wanted = torch.ones(()) if mass is None else mass.to(plan.dtype)[:, None]
    for _ in range(n_iterations):
        sums = _down(plan, rows).where(wanted > 0, 1.0)  # (..., K, 1)
        if not _outweigh(sums, rows):
            return None
        classes = wanted / sums
        classes /= classes.amax(-2, keepdim=True)
        sums = plan @ classes  # (..., B, 1)
        if not _outweigh(sums, classes):
            return None
        rows = sums.amin(-2, keepdim=True) / sums
    return plan.mul_(classes.mT).div_(sums).float()


def _down(plan: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Products with a vector over the rows, of which few are added at a time, so that their rounding stays small."""
    parts = zip(plan.split(ADDED_ROWS, -2), rows.split(ADDED_ROWS, -2), strict=True)
    return torch.stack([some.mT @ factors for some, factors in parts]).sum(0)


def _outweigh(sums: torch.Tensor, factors: torch.Tensor) -> bool:
    """Whether sums of products with factors of at most 1 are far above all that may be missing in them."""
    return bool(sums.amin() > FLOOR * factors.shape[-2]) and bool(sums.amax() < torch.inf)


def _in_plain_torch(
    logits: torch.Tensor,
    epsilon: float | torch.Tensor,
    n_iterations: int,
    group: ProcessGroup | None,
    mass: torch.Tensor | None,
) -> torch.Tensor:
    """Anywhere, and what a compiler makes kernels of."""
    numbers = logits.to(torch.promote_types(logits.dtype, torch.float32))
    top = _largest(numbers, -1)
    bad = ~(top < torch.inf)  # (..., B, 1) NaN or +inf in the row, which the largest shows
    numbers, top = numbers.masked_fill(bad, -torch.inf), top.masked_fill(bad, -torch.inf)  # as if it were not there
    shifted = scaled = (numbers - top.where(top > -torch.inf, 0)) / epsilon  # (..., B, K), at most 0 whatever they are
    highest = _over_processes(_largest(top, -2), "MAX", group) if n_iterations else top
    log_rows = (top - highest) / epsilon  # so that the start is exp(s / epsilon)
    for iteration in range(n_iterations):
        log_classes = _log_mass(mass, scaled) - _log_column_sums(scaled + log_rows, group)
        shifted = scaled + log_classes.where(log_classes < torch.inf, 0)  # inf: of a class that all rows forbid
        if iteration < n_iterations - 1:
            log_rows = -torch.logsumexp(shifted, -1, keepdim=True)
            log_rows = log_rows.where(log_rows < torch.inf, -torch.inf)  # inf: of a row without any class
    of_no_class = torch.where(bad, torch.nan, 0.0)
    return torch.softmax(shifted, -1).where(top > -torch.inf, of_no_class).float()


def _by_kernels(
    logits: torch.Tensor,
    epsilon: float | torch.Tensor,
    n_iterations: int,
    group: ProcessGroup | None,
    mass: torch.Tensor | None,
) -> torch.Tensor:
    """The same on a card: between the passes of `sweep.batch` there are vectors alone."""
    from otlabel.sweep import batch

    precision = torch.promote_types(logits.dtype, torch.float32)
    if isinstance(epsilon, torch.Tensor) and epsilon.device == logits.device:
        inverse = epsilon.to(precision).reciprocal()
    else:
        inverse = torch.full((), 1 / float(epsilon), dtype=precision, device=logits.device)
    tops = _largest(logits, 1).to(precision)
    known = torch.nan_to_num(tops, nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
    log_rows = ((known - _over_processes(_largest(known, 0), "MAX", group)) * inverse)[:, 0]
    tops = tops[:, 0]
    for iteration in range(n_iterations):
        log_classes = batch.column_logs(logits, tops, log_rows, inverse)
        if group is not None:
            log_classes = _log_column_sums(log_classes[None], group)[0]
        log_classes = log_classes - _log_mass(mass, log_classes)
        if iteration < n_iterations - 1:
            log_rows = batch.row_logs(logits, tops, log_classes, inverse)
    return batch.assignments(logits, tops, log_classes, inverse)


def _checked_mass(class_mass: Any, logits: torch.Tensor) -> torch.Tensor:
    """(K,) shares of the classes on the logits' device."""
    (*_, n_rows, n_classes) = logits.shape
    if isinstance(class_mass, torch.Tensor) and (class_mass.device.type != "cpu" or torch.compiler.is_compiling()):
        if class_mass.shape != (n_classes,) or not class_mass.is_floating_point():
            raise InvalidMassError(
                f"class_mass has shape {tuple(class_mass.shape)} of {class_mass.dtype}; pass {n_classes} shares"
            )
        mass = class_mass.detach()
    else:
        given = by_class(class_mass, n_classes, None, "class_mass", InvalidMassError)
        mass = torch.from_numpy(class_shares(with_unit_sum(given, class_mass), n_rows, n_classes))
        if logits.is_cuda and not torch.compiler.is_compiling():
            mass = mass.pin_memory()  # so that nothing waits for the device
    return mass.to(logits.device, torch.promote_types(logits.dtype, torch.float32), non_blocking=logits.is_cuda)


def _log_mass(mass: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor | float:
    """Of classes that are to take some, 0 of others; one constant in all classes says nothing."""
    return 0.0 if mass is None else mass.log().where(mass > 0, 0.0).to(like.dtype)


def _checked_epsilon(epsilon: Any) -> Any:
    """A positive number; of a tensor NaN in place of anything else, without looking at what it holds."""
    if isinstance(epsilon, (np.ndarray, np.generic)):
        if torch.compiler.is_compiling():
            epsilon = torch.as_tensor(epsilon)  # as which a compiler follows NumPy's numbers
        elif epsilon.size != 1:
            raise ValueError(f"epsilon is an array of shape {epsilon.shape}; pass one number")
    if isinstance(epsilon, torch.Tensor):
        if epsilon.numel() != 1 or epsilon.is_complex():
            raise ValueError(f"epsilon is a tensor of shape {tuple(epsilon.shape)} of {epsilon.dtype}; pass one number")
        number = epsilon.detach().reshape(()).to(torch.promote_types(epsilon.dtype, torch.float32))
        return number.where((number > 0) & (number < torch.inf), torch.nan)
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon is {epsilon}; it must be a positive number")
    return epsilon


def _as_tensor(logits: Any) -> torch.Tensor:
    """Logits that are no tensor, in host memory; masked pairs are forbidden."""
    array = as_matrix(logits, "logits")
    if is_foreign(array):
        array = array.astype(np.float32)
    if array.ndim < 2 or array.dtype.kind != "f":
        _refuse(array)
    numbers = array.astype(np.promote_types(f"f{min(array.dtype.itemsize, 8)}", np.float32))
    return torch.from_numpy(np.asarray(np.ma.filled(numbers, -np.inf)))


def _refuse(logits: Any) -> NoReturn:
    if isinstance(logits, torch.Tensor):
        plain_tensor(logits, "logits")
    raise InvalidScoresError(
        f"logits have shape {tuple(logits.shape)} and dtype {logits.dtype}; pass (..., B, K) floating numbers"
    )


def _log_column_sums(values: torch.Tensor, group: ProcessGroup | None) -> torch.Tensor:
    """Log of the sums of exponentials over the rows of all processes, (..., 1, K)."""
    if group is None:
        return torch.logsumexp(values, -2, keepdim=True)
    top = _over_processes(_largest(values, -2), "MAX", group)
    top = top.where(top > -torch.inf, 0)
    sums = torch.exp(values - top).sum(-2, keepdim=True)
    return _over_processes(sums, "SUM", group).log() + top


def _over_processes(values: torch.Tensor, operation: str, group: ProcessGroup | None) -> torch.Tensor:
    """Sums or largest values over all processes of a group."""
    if group is not None:
        torch.distributed.all_reduce(values, getattr(torch.distributed.ReduceOp, operation), group)
    return values


def _largest(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Of rows or columns; -inf where a process has none."""
    if values.shape[dim]:
        return values.amax(dim, keepdim=True)
    shape = list(values.shape)
    shape[dim] = 1
    return values.new_full(shape, -torch.inf)
