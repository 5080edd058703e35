"""The front door: check, pose, solve, round, prove, answer. Read top to bottom, it is the whole method."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, overload

import numpy as np

from otlabel.errors import ConvergenceWarning, warn
from otlabel.interrupts import interruptible
from otlabel.marginals import KL, Exact, Range, Rule
from otlabel.ranks.communicator import communicator_of
from otlabel.ranks.rowset import RowSet
from otlabel.result import Assignment, like
from otlabel.solver.answer import Answer
from otlabel.solver.asking import ask
from otlabel.solver.continuation import solve
from otlabel.solver.equal_rows import merge_equal_rows, unmerged
from otlabel.solver.exact_labels import exact_labels
from otlabel.solver.first_look import first_look
from otlabel.solver.monitor import Monitor, observing
from otlabel.solver.objective import Point
from otlabel.solver.outcome import Status
from otlabel.solver.posing import pose
from otlabel.solver.problem import EXACT, Demand, Method, Remainder, Rounding, Solver, check_demand, check_solver
from otlabel.solver.proof import certified
from otlabel.solver.shortlist import room_for
from otlabel.solver.small import is_small, solve_small
from otlabel.sources import LinearScores, by_class, cached, open_scores, plain_names
from otlabel.sources.listed import least_of
from otlabel.sweep.pool import blas_on_one_thread
from otlabel.validate import check_vector

if TYPE_CHECKING:
    from torch import Tensor

FAR_BEHIND = 50.0  # times epsilon and the usual spread of potentials: who must be raised by more is wanted by no sample


class _Options(TypedDict, total=False):
    """What `sinkhorn_assign` takes by name, so that its types need not be written for each kind of scores."""

    class_mass: Any
    sample_mass: Any
    classes: Exact | KL | Range
    samples: Exact | KL
    abstain: float
    labels_per_sample: int
    remainder: Remainder
    epsilon: float
    rounding: Rounding
    tol: float
    max_sweeps: int
    method: Method
    init: Assignment | Any
    device: str
    seed: int
    progress: bool | Callable[[dict[str, Any]], None]
    memory_limit: int | None
    group: Any


@overload
def sinkhorn_assign(scores: Tensor | Sequence[Tensor], **options: Unpack[_Options]) -> Assignment[Tensor]: ...
@overload
def sinkhorn_assign(scores: LinearScores | Sequence[LinearScores], **options: Unpack[_Options]) -> Assignment[Any]: ...
@overload
def sinkhorn_assign(scores: Any, **options: Unpack[_Options]) -> Assignment[np.ndarray]: ...
@interruptible
def sinkhorn_assign(
    scores: Any,
    *,
    class_mass: Any = None,
    sample_mass: Any = None,
    classes: Exact | KL | Range = EXACT,
    samples: Exact | KL = EXACT,
    abstain: float = 0.0,
    labels_per_sample: int = 1,
    remainder: Remainder = "best",
    epsilon: float = 0.04,
    rounding: Rounding = "exact",
    tol: float = 1e-2,
    max_sweeps: int = 1000,
    method: Method = "auto",
    init: Assignment | Any = None,
    device: str = "auto",
    seed: int = 0,
    progress: bool | Callable[[dict[str, Any]], None] = False,
    memory_limit: int | None = None,
    group: Any = None,
) -> Assignment[Any]:
    """Label every sample so that the total score is the largest possible under what each class may take.

    With rounding="exact" the labels solve the linear program

        max_labels  mean_i s[i, labels_i]    subject to    #{i : labels_i = k} = size_k

    (or size_k within a `Range`, or less the charge of `KL`), whatever epsilon is. The entropic plan that comes with
    them solves, up to `tol`,

        max_Q  <Q, s> + epsilon H(Q)    subject to    Q 1 = 1/N,  Q^T 1 = b,

    which is Q_ik = softmax_k((s_ik + g_k) / epsilon) / N for some class potentials g. With `KL` or `Range` masses are
    charged for or bounded, and the plan is regularised by epsilon KL(Q | a b^T) in place of its entropy.

    Args:
        scores: (N, K) log-probabilities, similarities or negative distances, the larger the better. A NumPy array
            (also memory-mapped), a torch tensor, a data frame, an h5py dataset, "file.npy", "file.h5::/name", several
            files as one ("part-*.h5::/name"), a list of any of these with the rows one after the other,
            `linear_scores`, or sparse ones: a matrix of scipy.sparse, a sparse tensor, "file.h5::/group", `top_scores`;
            of float16, bfloat16, float32, float64 or integers; halves are read in place. Adding a constant to a row
            changes nothing. -inf forbids a pair, and so does a mask, or that a sparse matrix does not hold it. Never
            modified.
        class_mass: (K,) what each class takes: shares b that sum to 1, or integer sizes that sum to N. None: 1/K
            each. Where shares times N are no whole numbers, `remainder` says which sizes they become. A Series or a
            dict, as for everything with one number a class, is read by its names: the columns of a data frame of
            scores, else 0 ... K - 1.
        sample_mass: (N,) how much each sample counts: shares that sum to 1, or integers. None: 1/N each. A Series, as
            for everything with one number a row, is read by the index of a data frame of scores, else its index is to
            be 0 ... N - 1 in this order. Class sizes are then shares of this mass. The linear program may split up to K
            - 1 samples between classes; labels cannot, so each of these goes where most of it went, and `gap` and
            `label_mass` say what that makes.
        classes: the rule on class masses. `Exact()`: each class takes its mass. `Range(lo, hi)`: anything between.
            `KL(rho)`: prefers its mass and pays for leaving it.
        samples: `Exact()`, or `KL(rho)` where samples may take more or less than their mass too (fully unbalanced
            transport). There are no sizes to meet then: labels are the plan's best classes, whatever `rounding` is.
        abstain: share of the samples to leave unlabelled (-1), rounded to whole ones: those that fit worst, of all
            ways to choose them. The classes share the rest; bounds of a `Range` stay shares of all samples.
            Constants in rows then matter.
        labels_per_sample: k different classes for each sample: labels are (N, k), the best score of a row first, equal
            ones in the order of the classes. Shares in class_mass are of all N k places, and sizes sum to N k; no class
            takes a sample twice, so none more than N places. A `Range` bounds in how many samples a class is: shares
            in it are of the N samples. Value and bound are means over samples of the sum of their k scores, and the
            plan is the capped softmax 1 / (1 + exp((t_i - s_ik - g_k) / epsilon)), t_i such that row i sums to k. Not
            with `abstain`, nor with samples of unequal mass.
        remainder: where shares times N are no whole numbers, "best": sizes are the floor or the ceiling of them, where
            that is worth most. "first": the largest remainders get the ceiling, of equal ones the first classes. With
            sample masses, always the latter.
        epsilon: regularisation of the plan, in units of the scores (SeLa's lambda is 1/epsilon, 25 in the paper).
        rounding: "exact", or "argmax" of the plan as SeLa does, whose sizes are only near the target.
        tol: largest sum_k |c_k - b_k| of the plan's class masses c. 1e-2 moves half a percent of the mass.
        max_sweeps: passes over all rows that the plan may take.
        method: "auto" (falling epsilon, Newton steps, coarse to fine), or "sinkhorn" (plain iterations).
        init: an Assignment, or its (K,) plan potentials, to start from: fewer passes when scores changed little.
        device: "auto" solves tensors where they are and arrays on the CPU; or "cpu", "cuda", "cuda:1", ... What lies
            elsewhere is copied there if it fits, else block by block, in one pass if it can be; where memory is short,
            blocks become smaller. Class sizes and proof are the same on all devices, values within the gaps.
        seed: of the row samples, and of the choice among equally good labels.
        progress: True for a bar, or a function called after each pass with a dict of stage, rows, epsilon, error,
            seconds and n_sweeps, and while the plan is solved its potentials (K,), which `init` takes.
        memory_limit: bytes that may hold a copy of what is read from files or a list, in the type it is stored in, and
            as many lists of each row's best classes (256 MB at least). What does not fit is read anew in each pass; the
            labels are as good. None: half of the memory that is free, and lists up to 1 GB or twice the data.
        group: a torch.distributed group whose ranks call this together: scores and sample_mass are of this rank's
            rows, of which there may be none; all rows are those of rank 0, then rank 1, and so on. Everything else is
            to be the same on all ranks. Labels are the same bits as one process would give for all rows (on GPUs, the
            same value within the gaps). None: this process has all rows.

    Returns:
        Assignment with labels (N,), or (N, k) of labels_per_sample=k, their class sizes, value, bound and gap, and the
        potentials that prove them. torch in (a tensor, or a list of nothing else), torch out on the same device;
        everything else gives NumPy. With a group, labels are of this rank's rows, and bytes_read, bytes_sent and
        peak_memory its own; everything else is of all rows.

    Raises:
        InvalidScoresError: NaN, +inf, no matrix, parts of a list that do not fit together.
        FileFormatError: a file that is damaged, unfinished, or changed while it is read.
        InvalidMassError: class_mass, sample_mass or a Range of wrong length, sign or sum, with other names or a mask.
        InfeasibleError: forbidden pairs, or bounds that do not add up, leave no assignment.
        RankError: another rank failed, was lost, was silent for half of the group's timeout, or was called with
            something else; the message names it.

    Warns:
        ConvergenceWarning: the plan is not within tol. Exact labels are exact all the same.
        DegenerateScoresWarning: scores that carry no information, or look like probabilities.
        FewSamplesWarning: fewer samples than classes.

    Source: Asano, Rupprecht, Vedaldi, "Self-labelling via simultaneous clustering and representation learning",
        ICLR 2020, section 3.1; semi-dual: Cuturi, Peyre, "Semidual regularized optimal transport", SIAM Review 2018;
        unbalanced: Chizat, Peyre, Schmitzer, Vialard, Mathematics of Computation 2018.
    """
    with communicator_of(group) as communicator, observing(progress) as observer:
        # check
        solver = check_solver(epsilon, rounding, tol, max_sweeps, method, seed)
        opened = open_scores(scores, device=device, may_be_empty=communicator.world_size > 1)
        read_before, n_classes = opened.bytes_read, opened.shape[1]
        demand = check_demand(opened, class_mass, sample_mass, classes, samples, abstain, remainder, labels_per_sample)
        start = _Start.given(init, n_classes, opened.class_names)
        rows = RowSet.in_blocks(cached(opened, memory_limit), communicator).taking(demand.labels_per_sample)
        missing = "forbidden" if least_of(opened.source) is None else "at most the least"
        g = None if start is None else start.g
        communicator.check_alike(**vars(solver), **demand.settings, missing=missing, init=g)
        solver = replace(solver, room=-rows.max("room", -room_for(rows.opened, memory_limit))[0])

        # solve, round, prove
        monitor = Monitor(rows.n_rows, n_classes, observer)
        answer = None
        if is_small(rows, demand, solver):
            answer = solve_small(rows, demand, solver, g, None if start is None else start.ahead, monitor)
        if answer is None:
            with blas_on_one_thread():
                answer = _solve(rows, demand, solver, start, memory_limit, monitor)
        labels = rows.restore(answer.labels)

    # answer
    problem, solution, proof = answer.problem, answer.solution, answer.proof
    plan_potentials = solution.point.plan_potentials
    if solution.status is not Status.CONVERGED:
        _warn_of_status(solution.status, solution.point.error, solver, monitor.n_sweeps)
    thresholds = (-math.inf, -math.inf)
    if len(plan_potentials) > n_classes:  # after the classes comes that of those who abstain
        thresholds = float(answer.potentials[-1]) + problem.lowered, float(plan_potentials[-1]) + problem.lowered
    return Assignment(
        labels=like(np.where(labels < n_classes, labels, -1).astype(np.int64), scores),
        counts=like(np.asarray(proof.counts)[:n_classes], scores),
        class_mass=like(solution.point.sweep.mass[:n_classes], scores),
        potentials=like(answer.potentials[:n_classes], scores),
        plan_potentials=like(plan_potentials[:n_classes], scores),
        label_mass=like(answer.label_units[:n_classes] / problem.n_units, scores),
        value=proof.value,
        bound=proof.bound,
        epsilon=solver.epsilon,
        marginal_error=solution.point.error,
        status=solution.status,
        n_sweeps=monitor.n_sweeps,
        n_readings=monitor.n_readings,
        history=tuple(monitor.history),
        seconds=monitor.seconds,
        bytes_read=opened.bytes_read - read_before,
        bytes_sent=communicator.bytes_sent,
        peak_memory=monitor.peak_memory,
        n_samples=rows.n_rows,
        threshold=thresholds[0],
        plan_threshold=thresholds[1],
        sample_rho=problem.row_rho,
        notes=_notes(solution.point, solver.epsilon),
        gap=proof.gap,
        rounding=proof.rounding,
        size_error=proof.size_error,
        weighted=problem.weighted,
        class_names=plain_names(opened.class_names),
    )


def _solve(
    rows: RowSet, demand: Demand, solver: Solver, start: _Start | None, memory_limit: int | None, monitor: Monitor
) -> Answer:
    """The long way, on which nothing is taken for granted."""
    # pose
    asked = ask(rows, demand, solver)
    g = None if start is None else start.of(asked.rule, solver.epsilon, 0.0)
    look = first_look(rows, asked, solver, g, memory_limit, monitor)
    problem, hashes = pose(look.rows, asked, solver, look.sampled, monitor, look.inspection)
    if start is not None and (problem.lowered or problem.rule is not asked.rule):
        g = start.of(problem.rule, solver.epsilon, problem.lowered)
    distinct, members = merge_equal_rows(problem, hashes, monitor, solver.seed)
    del hashes  # of many rows, much memory
    shortlist = look.shortlist(distinct)

    # solve
    monitor.n_rows = distinct.n_rows
    solution = solve(distinct, solver, g, monitor, shortlist, look.start)

    # round
    labels, enough, potentials = None, None, solution.point.plan_potentials
    exact = solver.rounding == "exact" and math.isinf(problem.row_rho)
    if exact:
        rounded, enough = exact_labels(distinct, solver, solution, monitor)
        labels = unmerged(rounded.placement, members, rows, np.random.default_rng(solver.seed))
        potentials, enough = rounded.potentials, enough if members is None else None

    # prove
    monitor.n_rows = rows.n_rows
    labels, proof, label_units, potentials = certified(
        problem, labels, potentials, monitor, by_rule=exact, enough=enough
    )
    return Answer(problem, solution, labels, proof, label_units, potentials)


@dataclass(frozen=True, eq=False)
class _Start:
    """Plan potentials to start from; that of staying unlabelled, and by how much labels' ones differ, where known."""

    g: np.ndarray  # (K,)
    threshold: float
    ahead: np.ndarray | None  # (K,)

    @classmethod
    def given(cls, init: Any, n_classes: int, names: Any) -> _Start | None:
        """What the user passed, seen to be potentials."""
        if init is None:
            return None
        of_solve = isinstance(init, Assignment)
        g = by_class(init.plan_potentials if of_solve else init, n_classes, names, "init")
        g = check_vector(g, n_classes, "init")
        if not of_solve:
            return cls(g, math.nan, None)
        ahead = by_class(init.potentials, n_classes, names, "init")
        known = np.isfinite(ahead) & np.isfinite(g)
        return cls(g, init.plan_threshold, np.where(known, ahead, 0.0) - np.where(known, g, 0.0))

    def of(self, rule: Rule, epsilon: float, lowered: float) -> np.ndarray:
        """As the solver's own, of scores lowered by so much; a class that was to stay empty starts from zero."""
        g = self.g if len(rule.mass) == len(self.g) else np.append(self.g, self.threshold - lowered)
        g = g - epsilon * np.where(rule.wanted, rule.log_mass, 0.0)
        return np.where(rule.wanted, np.where(np.isfinite(g), g, 0.0), -np.inf)


def _warn_of_status(status: Status, error: float, solver: Solver, n_sweeps: int) -> None:
    exact = " The exact labels are not affected." if solver.rounding == "exact" else ""
    warn(
        ConvergenceWarning,
        f"the entropic plan has a class-mass error of {error:.2g} after {n_sweeps} passes, above tol={solver.tol:g}. "
        f"{status.remedy}{exact}",
    )


def _notes(point: Point, epsilon: float) -> tuple[str, ...]:
    """What a user should hear about these scores."""
    g = point.potentials[np.isfinite(point.potentials)]
    if np.ptp(g) <= FAR_BEHIND * epsilon:
        return ()
    above = g - np.median(g)
    behind = int((above > FAR_BEHIND * (epsilon + np.median(np.abs(above)))).sum())
    if not behind:
        return ()
    classes = "1 class is" if behind == 1 else f"{behind} classes are"
    return (f"{classes} wanted by no sample, yet filled because asked to",)
