"""The front door: validate, solve, round, prove. Read top to bottom, it is the whole method."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from otlabel import sweep
from otlabel.errors import ConvergenceWarning, InvalidMassError
from otlabel.interrupts import interruptible
from otlabel.marginals import KL, Exact, Range, class_sizes, one_number
from otlabel.monitor import Monitor, observing
from otlabel.problem import EXACT, Method, Problem, Rounding, Solver
from otlabel.ranks.communicator import communicator_of
from otlabel.ranks.rowset import RowSet
from otlabel.result import Assignment, Certificate, Status, like
from otlabel.rounding import TIE, Placement, round_exact, rounding_of
from otlabel.semidual import EPSILON_STEP, SAMPLE_ENTRIES, Point, draw_sampled, sharpen, solve
from otlabel.sources import (
    MovedScores,
    as_float,
    by_class,
    by_row,
    cached,
    class_mass_of,
    open_scores,
    plain_names,
    sample_mass_of,
)
from otlabel.validate import (
    FAR,
    LARGEST_SCORE,
    check_finite,
    check_labels,
    check_mass,
    check_number_of_labels,
    check_problem,
    check_solver,
    check_vector,
    middle,
    warn,
)

DISTINCT_SHARE = 0.5  # solve equal rows as one where at most this share of the rows is distinct
HASHES = 1 << 17  # of rows that are looked at to tell: sorting them is to cost little
EXCESS_SHARE = 0.02  # share of samples to move from which on a smaller epsilon is tried before moving them one by one
SMALLEST_EPSILON = 1e-5  # of a row's spread: the end of that
SHARP_EPSILON = 1 / 256  # of a row's spread: from here on each step should bring the sizes nearer
WORTHWHILE = 0.7  # share of the excess that may be left after such a step, or it was the last
SHARPENING_PASSES = 24  # that all of these steps may take: what is left over is for the repair
PRICE_ROOM = 8 * float(np.finfo(np.float64).eps)  # relative: more than rounding leaves between a price and a tie
FAR_BEHIND = 50.0  # times epsilon and the usual spread of potentials: who must be raised by more is wanted by no sample


@interruptible
def sinkhorn_assign(
    scores: Any,
    *,
    class_mass: Any = None,
    sample_mass: Any = None,
    classes: Exact | KL | Range = EXACT,
    samples: Exact | KL = EXACT,
    abstain: float = 0.0,
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
) -> Assignment:
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
            files as one ("part-*.h5::/name"), a list of any of these with the rows one after the other, or
            `linear_scores`; of float16, bfloat16, float32, float64 or integers; halves are read in place. Adding a
            constant to a row changes nothing. -inf forbids a pair, and so does a mask. Never modified.
        class_mass: (K,) what each class takes: shares b that sum to 1, or integer sizes that sum to N. None: 1/K
            each. Shares become sizes by the largest remainder of N b, ties to the lower class. A Series or a dict, as
            for everything with one number a class, is read by its names: the columns of a data frame of scores, else
            0 ... K - 1.
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
        epsilon: regularisation of the plan, in units of the scores (SeLa's lambda is 1/epsilon, 25 in the paper).
        rounding: "exact", or "argmax" of the plan as SeLa does, whose sizes are only near the target.
        tol: largest sum_k |c_k - b_k| of the plan's class masses c. 1e-2 moves half a percent of the mass.
        max_sweeps: passes over all rows that the plan may take.
        method: "auto" (falling epsilon, Newton steps, coarse to fine), or "sinkhorn" (plain iterations).
        init: an Assignment, or its (K,) plan potentials, to start from: fewer passes when scores changed little.
        device: "auto" solves tensors where they are and arrays on the CPU; or "cpu", "cuda", "cuda:1", ... What lies
            elsewhere is copied there if it fits, else block by block in every pass; where memory is short, blocks
            become smaller. Class sizes and proof are the same on all devices, values within the gaps.
        seed: of the row samples, and of the choice among equally good labels.
        progress: True for a bar, or a function called after each pass with a dict of stage, rows, epsilon, error,
            seconds and n_sweeps, and while the plan is solved its potentials (K,), which `init` takes.
        memory_limit: bytes that may hold a copy of what is read from files or a list, in the type it is stored in. What
            does not fit is read anew in each pass; the labels are the same. None: half of the memory that is free.
        group: a torch.distributed group whose ranks call this together: scores and sample_mass are of this rank's
            rows, of which there may be none; all rows are those of rank 0, then rank 1, and so on. Everything else is
            to be the same on all ranks. Labels are the same bits as one process would give for all rows (on GPUs, the
            same value within the gaps). None: this process has all rows.

    Returns:
        Assignment with labels (N,), their class sizes, value, bound and gap, and the potentials that prove them.
        torch in (a tensor, or a list of nothing else), torch out on the same device; everything else gives NumPy. With
        a group, labels are of this rank's rows, and bytes_read, bytes_sent and peak_memory its own; everything else is
        of all rows.

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
        solver = check_solver(epsilon, rounding, tol, max_sweeps, method, seed)
        epsilon, tol, max_sweeps, seed = solver.epsilon, solver.tol, solver.max_sweeps, solver.seed
        abstain = one_number(abstain, "abstain")
        opened = open_scores(scores, device=device, may_be_empty=communicator.world_size > 1)
        read_before = opened.bytes_read
        n_classes, named = opened.shape[1], opened.class_names
        class_mass = class_mass_of(class_mass, opened)
        sample_mass = sample_mass_of(sample_mass, opened)
        if isinstance(classes, Range):
            classes = Range(
                *(
                    by_class(bound, n_classes, named, f"Range: {name}", InvalidMassError)
                    for name, bound in vars(classes).items()
                )
            )
        init = init if isinstance(init, Assignment) else by_class(init, n_classes, named, "init")
        rows = RowSet.in_blocks(cached(opened, memory_limit), communicator)
        communicator.check_alike(
            epsilon=epsilon, rounding=rounding, tol=tol, max_sweeps=max_sweeps, method=method, seed=seed,
            class_mass=class_mass, classes=classes, lo=getattr(classes, "lo", None), hi=getattr(classes, "hi", None),
            samples=samples, abstain=abstain, init=getattr(init, "plan_potentials", init),
            weighted=sample_mass is not None,
        )  # fmt: skip
        n_rows = rows.n_rows
        sampled = draw_sampled(n_rows, n_classes, seed)
        kept = rows.over(cached(rows.source, memory_limit, rows.local(sampled)))
        monitor = Monitor(n_rows, n_classes, observer)
        problem, hashes = check_problem(
            kept,
            sampled,
            monitor,
            class_mass=class_mass,
            sample_mass=rows.of_all("sample_mass", sample_mass),
            classes=classes,
            samples=samples,
            abstain=abstain,
            epsilon=solver.epsilon,
            rounding=rounding,
        )
        start = _start(init, problem, epsilon, n_classes)

        distinct, members = _merge_equal_rows(problem, hashes, monitor, seed)
        monitor.n_rows = distinct.n_rows
        solution = solve(distinct, solver, start, monitor)
        exact = rounding == "exact" and math.isinf(problem.row_rho)
        if exact:
            point = _near_integer(distinct, solver, solution.point, monitor)
            rounded = round_exact(distinct, point.potentials, seed, monitor)
            labels = _unmerge(rounded.placement, members, rows, np.random.default_rng(seed))
            potentials = rounded.potentials
        else:
            labels, potentials = None, solution.point.plan_potentials
        monitor.n_rows = n_rows
        labels, proof, label_units, potentials = _certified(problem, labels, potentials, monitor, by_rule=exact)
        labels = rows.restore(labels)
    if solution.status is not Status.CONVERGED:
        _warn_of_status(solution.status, solution.point.error, solver, monitor.n_sweeps)
    thresholds = (-math.inf, -math.inf)
    if len(potentials) > n_classes:  # after the classes comes that of those who abstain
        lowered = problem.lowered
        thresholds = float(potentials[-1]) + lowered, float(solution.point.plan_potentials[-1]) + lowered
    return Assignment(
        labels=like(np.where(labels < n_classes, labels, -1).astype(np.int64), scores),
        counts=like(np.asarray(proof.counts)[:n_classes], scores),
        class_mass=like(solution.point.sweep.mass[:n_classes], scores),
        potentials=like(potentials[:n_classes], scores),
        plan_potentials=like(solution.point.plan_potentials[:n_classes], scores),
        label_mass=like(label_units[:n_classes] / problem.n_units, scores),
        value=proof.value,
        bound=proof.bound,
        epsilon=epsilon,
        marginal_error=solution.point.error,
        status=solution.status,
        n_sweeps=monitor.n_sweeps,
        history=tuple(monitor.history),
        seconds=monitor.seconds,
        bytes_read=opened.bytes_read - read_before,
        bytes_sent=communicator.bytes_sent,
        peak_memory=monitor.peak_memory,
        n_samples=n_rows,
        threshold=thresholds[0],
        plan_threshold=thresholds[1],
        sample_rho=problem.row_rho,
        notes=_notes(solution.point, epsilon),
        gap=proof.gap,
        rounding=proof.rounding,
        size_error=proof.size_error,
        weighted=problem.weighted,
        class_names=plain_names(named),
    )


@interruptible
def certify(
    scores: Any, labels: Any, *, potentials: Any = None, class_mass: Any = None, group: Any = None
) -> Certificate:
    """Prove how good any labels are, whoever made them: their value, and a bound that no labels of these sizes pass.

        gap = mean_i max_k (s_ik + g_k) - <sizes / N, g>  -  mean_i s[i, labels_i]

    Args:
        scores: (N, K), as for `sinkhorn_assign`.
        labels: (N,) integers from 0 to K - 1; -1 for a sample left unlabelled, which the bound then allows for as many.
        potentials: (K,) g; any will do, good ones make the bound tight. None: the best are found by solving.
        class_mass: (K,) sizes or shares that the bound is to hold for. None: the sizes that the labels have. For
            others, the gap says how far the labels are from the best with those sizes, and may be negative.
        group: a torch.distributed group whose ranks call this together, each with its own rows (maybe none) and their
            labels, and otherwise alike. None: this process has all rows.

    Returns:
        Certificate with value, bound, gap, relative_gap and the labels' class sizes; with a group, of all rows.

    Raises:
        InvalidScoresError, InvalidMassError: as for `sinkhorn_assign`.
        ValueError: labels of the wrong length or outside of 0 ... K - 1, or potentials of the wrong length.
    """
    with communicator_of(group) as communicator:
        opened = open_scores(scores, may_be_empty=communicator.world_size > 1)
        rows = RowSet.as_given(opened, communicator)
        opened, n_rows, n_classes = rows.source, rows.n_rows, rows.shape[1]
        check_number_of_labels(labels, opened.shape[0])
        given = check_labels(by_row(labels, opened.shape[0], opened.row_names, "labels"), opened.shape[0], n_classes)
        labelled = given >= 0
        (sizes,) = rows.sum("sizes", np.bincount(given[labelled], minlength=n_classes))
        n_labelled = int(sizes.sum())
        if not n_labelled:
            raise ValueError("all labels are -1: there is nothing to certify")
        targets = sizes
        if class_mass is not None:
            shares = class_mass_of(class_mass, opened)
            targets = class_sizes(check_mass(shares, n_labelled, n_classes), n_labelled)
        potentials_given = potentials is not None
        if potentials is None:
            mass, abstain = targets / n_labelled, 1 - n_labelled / n_rows
            potentials = sinkhorn_assign(opened, class_mass=mass, abstain=abstain, group=group).potentials
        else:
            check_finite(rows, sweep.inspect(rows))
        g = check_vector(by_class(potentials, n_classes, opened.class_names, "potentials"), n_classes, "potentials")
        used = (sizes > 0) | (targets > 0)
        g = np.where(used & np.isneginf(g), g[np.isfinite(g)].min(initial=0.0), g)  # any finite one makes a bound
        largest = np.abs(g[np.isfinite(g)]).max(initial=0.0)
        if largest > LARGEST_SCORE:
            raise ValueError(f"potentials reach {largest:.3g}; above {LARGEST_SCORE:g} sums with them are no numbers")
        if potentials_given and n_labelled == n_rows:
            middle_one = np.median(g[used])  # a constant says nothing where all are labelled
            moved = g - middle_one
            g = np.where(np.abs(moved) <= TIE * np.abs(middle_one), 0.0, moved)
        reach = np.abs(g[np.isfinite(g)]).max(initial=0.0)
        _, best, own = sweep.label(rows, g, given)
        of_labels = own[labelled] - g[given[labelled]]
        if reach > FAR * rows.median("value", np.abs(of_labels)):  # the sum has lost what the scores were
            of_labels = sweep.label(rows, np.zeros(n_classes), given)[2][labelled]
        (value,) = rows.sum("value", of_labels.sum())
        open_rows = best > -np.inf
        (farthest,) = rows.max("far", np.abs(best[open_rows]).max(initial=0.0))
        bare = opened.fine.bare
        if farthest > FAR * np.ptp(g[used]) and (np.ptp(g[used]) > 0 or bare is not opened.fine):
            # Constants in rows would hide what tells classes apart: they are taken off before anything is added.
            by_all = MovedScores(bare) if n_labelled == n_rows else MovedScores(opened, middle(rows, best[open_rows]))
            _, best, own = sweep.label(rows.over(by_all), g, given)
        own_g = g[given]
        if n_labelled < n_rows:  # as by one more class of score zero, with the potential that leaves it so many
            threshold = np.partition(rows.concat("best", best)[0], n_rows - n_labelled)[n_rows - n_labelled]
            best = np.maximum(best, threshold)
            own, own_g = np.where(labelled, own, threshold), np.where(labelled, own_g, threshold)
        fits = own > -np.inf
        short = np.full(len(own), np.inf)  # of a label on a forbidden pair
        known = np.zeros(len(own))
        short[fits] = best[fits] - own[fits]
        if reach:  # else nothing is added
            known[fits] = rounding_of(best[fits], own[fits], own_g[fits], g)
        short, rounded = rows.sum("short", short.sum(), np.minimum(short, known).sum())
        gap = (float(short) + float((sizes - targets)[used] @ g[used])) / n_rows
        size_error = float(np.maximum(targets - sizes, 0).sum()) / n_rows
        mean = float(value) / n_rows
        return Certificate(mean, mean + gap, like(sizes, scores), gap, float(rounded) / n_rows, size_error)


def _start(init: Any, problem: Problem, epsilon: float, n_classes: int) -> np.ndarray | None:
    """Potentials to start from; a class that was to stay empty starts from zero."""
    if init is None:
        return None
    rule, g, threshold = problem.rule, init, problem.lowered
    if isinstance(init, Assignment):
        g, threshold = init.plan_potentials, init.plan_threshold
    g = check_vector(g, n_classes, "init")
    if len(rule.mass) > n_classes:
        g = np.append(g, threshold - problem.lowered)
    g = g - epsilon * np.where(rule.wanted, rule.log_mass, 0.0)
    return np.where(np.isfinite(g), g, 0.0)


def _merge_equal_rows(
    problem: Problem, hashes: np.ndarray, monitor: Monitor, seed: int
) -> tuple[Problem, np.ndarray | None]:
    """Where most rows repeat others, the problem on distinct rows with weights, and for each row which one it is.

    Equal rows are tied in every class, so one by one they would make as many moves of cost zero. The distinct ones
    are to be in memory: more of them than that allows are left where they are, one by one.
    """
    if problem.weights is not None or _mostly_distinct(hashes, problem.rows):
        return problem, None
    rows = problem.rows.fine  # what float32 has made alike may differ
    hashes = sweep.inspect(rows, every_score=True).hashes
    monitor.saw("inspect", rows.n_rows)
    if _mostly_distinct(hashes, rows):
        return problem, None
    here, first, members, times = np.unique(hashes, return_index=True, return_inverse=True, return_counts=True)
    seen, first, times = rows.concat("hashes", here, first + rows.first, times)
    seen, at, same = np.unique(seen, return_index=True, return_inverse=True)  # the first of equal ones
    first, times = first[at], np.bincount(same, times, len(seen))
    (from_files,) = rows.max("hashes", not rows.source.random_access)
    if from_files and len(first) * problem.n_classes > SAMPLE_ENTRIES:
        return problem, None
    order = np.argsort(first)
    distinct = rows.subset(first[order])
    weights = times[order][distinct.first : distinct.stop]
    sampled = draw_sampled(len(first), problem.n_classes, seed)
    merged = replace(problem, rows=distinct, weights=weights, sampled=sampled)
    return merged, np.argsort(order)[np.searchsorted(seen, here)[members]]


def _mostly_distinct(hashes: np.ndarray, rows: RowSet) -> bool:
    """Whether most rows of all ranks differ, judged where there are many by those with small hashes."""
    share = min(1.0, HASHES / rows.n_rows)
    if share < 1:
        hashes = hashes[hashes < np.uint64(share * 2**64)]
    (some,) = rows.concat("hashes", _distinct(hashes))
    return len(_distinct(some)) > DISTINCT_SHARE * share * rows.n_rows


def _distinct(hashes: np.ndarray) -> np.ndarray:
    """Each hash once, in order; by sorting, which is several times quicker here than np.unique's table."""
    hashes = np.sort(hashes)
    return hashes[np.diff(hashes, prepend=~hashes[:1]) != 0]


def _unmerge(placement: Placement, members: np.ndarray | None, rows: RowSet, rng: np.random.Generator) -> np.ndarray:
    """Labels of all rows here: equal rows in random order take the classes of the row they were merged into."""
    if members is None:
        return placement.labels
    labels = rows.concat("labels", placement.labels)[0][members]
    if len(placement.split_rows):
        split = np.flatnonzero(np.isin(members, placement.split_rows))
        all_split, positions = rows.concat("labels", members[split], rows.first + split)
        before = int(np.searchsorted(positions, rows.first))  # split rows of the ranks before
        order = rng.permutation(len(all_split))
        order = order[np.argsort(all_split[order], kind="stable")]
        classes = np.empty(len(order), labels.dtype)
        classes[order] = np.repeat(placement.split_classes, placement.split_units)
        labels[split] = classes[before : before + len(split)]
    return labels


def _near_integer(problem: Problem, solver: Solver, point: Point, monitor: Monitor) -> Point:
    """Potentials whose argmax comes near the class sizes: at a large epsilon that takes a smaller one first."""
    takers = problem.bounds[1] > 0
    integer = replace(problem, rule=problem.rule.with_units(problem.n_units))
    excess = _excess(point, integer)
    # Above the spread scores hardly matter: potentials are epsilon times the logarithms of what classes ask for.
    epsilon = min(solver.epsilon, problem.spread or solver.epsilon)
    g = point.potentials * (epsilon / solver.epsilon)
    enough = max(EXCESS_SHARE, np.count_nonzero(takers) / problem.n_rows)
    best, least = point, excess
    solver = replace(solver, max_sweeps=monitor.n_sweeps + SHARPENING_PASSES)
    while excess > enough and epsilon > SMALLEST_EPSILON * problem.spread > 0 and monitor.n_sweeps < solver.max_sweeps:
        epsilon /= EPSILON_STEP
        point = sharpen(integer, solver, epsilon, np.where(takers, g, -np.inf), monitor)
        g = point.potentials
        before, excess = excess, _excess(point, integer)
        if excess < least:
            best, least = point, excess
        if excess > WORTHWHILE * before and epsilon < SHARP_EPSILON * problem.spread:
            break  # equal rows move together: their classes stay uneven at any epsilon
    return best


def _excess(point: Point, problem: Problem) -> float:
    """Share of the units that would have to leave their argmax label, or come to one."""
    counts = point.sweep.counts
    if not len(counts):  # a device has not looked for them
        counts = sweep.sweep(problem.rows, point.plan_potentials, 1.0, problem.weights, point.precision).counts
    shares = counts / problem.n_units
    missing = problem.rule.demand(point.potentials, shares) - shares
    return float(max(np.maximum(missing, 0).sum(), np.maximum(-missing, 0).sum()))


def _certified(
    problem: Problem, labels: np.ndarray | None, potentials: np.ndarray, monitor: Monitor, *, by_rule: bool
) -> tuple[np.ndarray, Certificate, np.ndarray, np.ndarray]:
    """Labels (the argmax where none are given), value and bound from one pass in float64, and units of each class.

    The bound holds for all labels that the problem's rule allows, or for all of the same class sizes. Last come the
    potentials, with those of classes that take no sample here but may take new ones.
    """
    labels, best, own = sweep.label(problem.rows, potentials, labels)
    n_classes, n_units = problem.n_classes, problem.n_units
    monitor.saw("certify", problem.n_rows)
    g, weights = potentials[labels], np.ones(1) if problem.weights is None else problem.weights
    known = rounding_of(best, own, g, potentials)
    here = (np.stack([best - own, own - g, np.minimum(best - own, known)]) * weights).sum(1)
    totals, sizes, counts, known = problem.rows.sum(
        "certify",
        here,
        np.bincount(labels, problem.weights, n_classes),
        np.bincount(labels, minlength=n_classes),
        np.bincount(labels, known * weights, n_classes),
    )
    short, scored, rounded = totals.tolist()
    size_error, n_given = 0.0, len(problem.for_new)
    labelled = int(sizes[:n_given].sum())
    scored += problem.lowered * labelled
    if by_rule:
        of_classes = problem.rule.shortfall(potentials, sizes, n_units)
        short += float(of_classes.sum())
        rounded += float(np.minimum(of_classes, known).sum())
        if n_given < n_classes:  # weighted samples may be too large to leave just so much unlabelled
            short += problem.lowered * (n_units - int(problem.bounds[0][-1]) - labelled)
        lo, hi = problem.bounds
        soft = np.isfinite(problem.rule.rho)
        off = np.maximum(lo - sizes, 0), np.where(soft, 0, np.maximum(sizes - hi, 0))
        size_error = float(max(part.sum() for part in off)) / n_units
    gap, value = short / n_units, scored / n_units
    proof = Certificate(value, value + gap, counts, gap, rounded / n_units, size_error)
    return labels, proof, sizes, _priced(problem, potentials, best, monitor)


def _priced(problem: Problem, potentials: np.ndarray, best: np.ndarray, monitor: Monitor) -> np.ndarray:
    """Potentials with those of classes that take no sample here, but may take new ones, in place of -inf.

    They are the largest at which no sample here would enter, g_k = min_i (best_i - s_ik), where best_i is the largest
    score + potential of the row. A class that is forbidden to all samples tells nothing: it gets the least of others.
    """
    classes = np.flatnonzero(problem.for_new & np.isneginf(potentials[: len(problem.for_new)]))
    finite = potentials[np.isfinite(potentials)]
    if not len(classes) or not len(finite):
        return potentials
    scores = problem.rows.source.fine
    room = np.full(len(classes), np.inf)
    with scores.reading():
        for batch in scores.batches():
            for (start, stop), block in zip(batch, scores.read_blocks(batch), strict=True):
                some = as_float(block[:, classes], scores.dtype).astype(np.float64)
                room = np.minimum(room, (best[start:stop, None] - some).min(0))
    monitor.saw("prices", problem.n_rows)
    room = problem.rows.min("prices", room)
    room = np.where(room < np.inf, room, finite.min())
    size = problem.stored_magnitude + np.abs(room) + float(np.abs(finite).max())
    below = PRICE_ROOM * size  # so that none ties either
    priced = potentials.copy()
    priced[classes] = room - below
    return priced


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
    above = g - np.median(g)
    behind = int((above > FAR_BEHIND * (epsilon + np.median(np.abs(above)))).sum())
    if not behind:
        return ()
    classes = "1 class is" if behind == 1 else f"{behind} classes are"
    return (f"{classes} wanted by no sample, yet filled because asked to",)
