"""Exact labels: move surplus from overfull to underfull classes, with a proof at the end.

Labels that are the argmax of s + g are optimal for their own class sizes. Moving one member i of class j to class k
costs r = (s_ij + g_j) - (s_ik + g_k) >= 0. A shortest path from an overfull to an underfull class, and potentials
lowered by the distances, keep every label an argmax: so the end is the optimum of the linear program, and g proves it.

Only rows with a second class within `slack` of their label can move at all while potentials fall by less than
`slack`. Those few candidates are read in one pass and repaired in memory; if they do not suffice, potentials have
fallen by `slack` and the next pass reads the candidates that count now.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from otlabel import sweep
from otlabel.errors import InfeasibleError
from otlabel.marginals import Rule
from otlabel.ranks.rowset import RowSet
from otlabel.solver.monitor import Monitor
from otlabel.solver.problem import Problem
from otlabel.solver.repair import Board, Done, repair, spread_ties
from otlabel.sources import draw_rows

ROUNDED = 64 * float(np.finfo(np.float64).eps)  # of the size of what is added: a gap up to this is rounding
MOST_JUDGED = 1 << 18  # entries whose median says what numbers are usual; beyond, every second, third, ... of them
TIE = 4 * float(np.finfo(np.float64).eps)  # relative difference below which two float64 sums count as equal
MOVES_A_ROW, MOVES_A_CLASS = 0.25, 16  # candidate moves to read at first: more than a repair needs, as a rule
SAMPLE_ROWS, SAMPLE_ROWS_A_CLASS = 4096, 4  # rows that the first slack is judged by
FIRST_SLACK = 1 / 64  # of a row's spread: where that search begins
SOFT_SLACK = 2.0  # times rho: how far around its price places of soft classes count at first; they grow as its exp
MOST_LEVELS = 1 << 18  # of all soft classes: beyond, as with real sample masses, neighbouring ones count as alike
SLACK_STEP = 2.0  # how much wider the next pass looks where the candidates did not suffice
FEW_MORE = 1.5  # times as many candidates: where so few come, the slack widens faster
STARVED = 0.1  # share of the fewest units of a class under which it is brought in before anything moves
LEAST_STARVED = 8  # samples that it is to have: of fewer, some classes have none by chance
COLUMNS_AT_ONCE = 64  # of classes that are brought in: of all rows of a sample
MUCH_WIDER = 8  # times as many candidates, all there are, are taken for the last units once as many have been read
LOOKS_AN_ENTRY = 10.0  # moves that a repair looks at while a pass finds one candidate
JUMP = 1e6  # from a usual potential to one that is not: what is then taken for rounding is below 2e-8 of the usual
FINER = 1e-6  # times what counts as nothing for most rows: in passes for those that it is much for
REFINED_PASSES = 4  # of those that mend what potentials lost of small rows' digits while they fell by much


@dataclass(frozen=True, eq=False)
class Placement:
    """Where every unit of every row goes: a label a row here, and a list for the rows of all that are split."""

    labels: np.ndarray  # (N,) int32; of a split row, the class that has most of it
    split_rows: np.ndarray  # (S,) int64, sorted: one entry for each class of each split row
    split_classes: np.ndarray  # (S,) int32
    split_units: np.ndarray  # (S,) int64


@dataclass(frozen=True, eq=False)
class Movable:
    """What all ranks need know of the rows that may still move, and of the others."""

    found: sweep.Candidates  # rows are numbered over all ranks
    labels: np.ndarray  # (R,) of these rows
    weights: np.ndarray  # (R,) int64
    fixed: np.ndarray  # (K,) units of all other rows with each label
    row_of: np.ndarray  # (E,) which of these rows each entry belongs to


@dataclass(frozen=True, eq=False)
class Rounded:
    """Exact labels with the potentials that prove them."""

    placement: Placement
    potentials: np.ndarray  # (K,) -inf for classes that are to stay empty
    n_paths: int


def round_exact(problem: Problem, potentials: np.ndarray, seed: int, monitor: Monitor) -> Rounded:
    """The best assignment whose class sizes obey problem.rule, from potentials near the optimum.

    Any start will do; the nearer the argmax comes to the sizes, the less is left to move. Raises InfeasibleError
    where forbidden pairs leave no assignment.
    """
    n_classes = problem.n_classes
    rng = np.random.default_rng(seed)
    most = problem.bounds[1]
    reach = n_classes * problem.extent  # larger ones, from an epsilon far above the scores, would hide these in sums
    g = np.where(most > 0, np.clip(np.where(np.isfinite(potentials), potentials, 0.0), -reach, reach), -np.inf)
    g = _less(g, np.zeros(n_classes), problem.rule)
    tie, coarsest = 0.0, TIE * (problem.magnitude + float(np.abs(g[np.isfinite(g)]).max()))
    n_here, no_rows = problem.rows.shape[0], np.empty(0, np.int64)
    weights = np.ones(n_here, np.int64) if problem.weights is None else problem.weights.astype(np.int64)
    unlabelled = Placement(np.full(n_here, -1, np.int32), no_rows, no_rows.astype(np.int32), no_rows)
    placement = unlabelled
    n_paths, n_before, left, step, n_refined = 0, 0, problem.n_units + 1, SLACK_STEP, 0
    first, may_lift, n_read, n_all = True, True, 0, problem.n_rows * n_classes
    first_slack, widest = _first_slack(problem, g, rng)  # potentials that fall by slack must not move these
    slack = first_slack
    while True:
        movable = _movable(problem, g, placement.labels, weights, slack, tie)
        monitor.saw("round", problem.n_rows)
        units = _units(movable, placement, n_classes)
        counts = movable.fixed + np.bincount(movable.found.classes, units, n_classes).astype(np.int64)
        if may_lift:
            may_lift, starved = False, _starved(problem, counts)
            if len(starved):
                g = _less(_lifted(problem, g, starved, rng), np.zeros(n_classes), problem.rule)
                first_slack, widest = _first_slack(problem, g, rng)
                placement, slack = unlabelled, first_slack
                continue
        below, tie = _below_best(movable, g)
        spare = spare_room(problem, g, counts, slack, tie)
        board = _board(movable, below, units, spare, g, counts)
        if first:
            spread_ties(board, rng.permutation(len(board.start) - 1), tie)
            first = False
        done = _repair(board, slack, tie * FINER if n_refined else tie)
        n_paths += done.n_paths
        monitor.saw("repair", 0)
        is_done = np.array_equal(board.counts, board.targets)
        if not is_done and slack == np.inf:
            filled = np.bincount(spare.classes, board.units[len(units) :: 2], n_classes).astype(np.int64)
            raise _infeasible(problem, board, board.counts[:-1] - filled)
        units = board.units[: len(units)]
        g = _less(g, (board.potentials[-1] if spare.any_room else 0.0) - board.potentials[:-1], problem.rule)
        placement = _placed(movable, units, placement.labels, g, problem.rows)
        if is_done:
            g = np.where(np.abs(g) <= tie, 0.0, g)  # less is left of rounding
            between = _between_borders(movable, units, g, slack) if problem.rule.shift_free else g
            if (between != g).any():  # further than a repair looks, what is no entry may come in
                short, short_between = (_shortfall(problem, placement.labels, tried, monitor) for tried in (g, between))
                g = between if short_between <= short else g
            if n_refined < REFINED_PASSES and _falls_short(movable, units, g):
                n_refined += 1
                slack, left = first_slack, problem.n_units + 1
                continue
            return Rounded(placement, g, n_paths)
        n_entries, surplus = len(units), int(np.maximum(board.counts - board.targets, 0).sum())
        n_read += n_entries
        many_looks = done.n_looked > n_all + LOOKS_AN_ENTRY * n_entries
        if many_looks and surplus < left:  # these grow with the candidates, so another pass is cheaper
            left = surplus
            continue
        step = 2.0 * step if n_entries < FEW_MORE * n_before else SLACK_STEP
        n_before, left = n_entries, min(left, surplus)
        slack = max(step * slack, coarsest)  # scores may be far smaller than the prices of places
        few_left = surplus <= n_classes and n_read > n_all <= MUCH_WIDER * n_entries
        if slack > widest or few_left:
            slack = np.inf


def _movable(
    problem: Problem, g: np.ndarray, labels: np.ndarray, weights: np.ndarray, slack: float, tie: float
) -> Movable:
    """One pass over the rows here, then what other ranks found; labels that fall short are replaced."""
    n_classes = problem.n_classes
    found = sweep.candidates(problem.rows, g, labels, slack, tie)
    fixed = np.ones(len(labels), bool)
    fixed[found.rows] = False
    rows = found.rows + problem.rows.first
    told = rows, found.sizes, found.classes, found.scores, labels[found.rows], weights[found.rows]
    rows, sizes, classes, values, own_labels, own_weights = problem.rows.concat("round", *told)
    (counts,) = problem.rows.sum("round", np.bincount(labels[fixed], weights[fixed], n_classes).astype(np.int64))
    row_of = np.repeat(np.arange(len(rows)), sizes)
    return Movable(sweep.Candidates(rows, sizes, classes, values), own_labels, own_weights, counts, row_of)


def _repair(board: Board, slack: float, tie: float) -> Done:
    """Compiled code hears no interrupt, so it works on a thread of its own and this one waits for either."""
    stop = np.zeros(1, np.bool_)
    with ThreadPoolExecutor(1) as worker:
        moving = worker.submit(repair, board, slack, tie, stop)
        try:
            return moving.result()
        except BaseException:
            stop[0] = True  # the thread is then waited for, but only to the end of a path
            raise


def _first_slack(problem: Problem, g: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """How far below its label a class may be to count as a candidate, and how far two can be for any row.

    The first is judged by a sample, so that candidates stay few.
    """
    n_takers = int(np.count_nonzero(problem.bounds[1]))
    rows = _sampled(problem, rng)
    sample = problem.rows.taken(rows)
    wanted = int(len(rows) * max(MOVES_A_ROW, MOVES_A_CLASS * n_takers / problem.n_rows)) + 1
    most, widest = SOFT_SLACK * float(problem.rule.rho.min()), problem.extent + float(np.ptp(g[np.isfinite(g)]))
    slack = max((problem.spread or widest) * FIRST_SLACK, 1e-300)
    while True:
        found = sweep.candidates(sample, g, np.full(sample.shape[0], -1, np.int32), slack, 0.0)
        u, sizes = _totals(found, g)
        costs = np.repeat(_row_tops(found, u), found.sizes) - u if len(u) else u
        costs = np.sort(problem.rows.concat("slack", costs[costs > TIE * sizes])[0])  # what is less is rounding
        if len(costs) >= wanted:
            return min(float(costs[wanted - 1]), most), widest
        if slack > widest:
            return min(slack, most), widest
        slack *= SLACK_STEP


def _sampled(problem: Problem, rng: np.random.Generator) -> np.ndarray:
    """A few of the rows (sorted) that samples are taken from, for first looks."""
    n_takers = int(np.count_nonzero(problem.bounds[1]))
    size = min(len(problem.sampled), max(SAMPLE_ROWS, SAMPLE_ROWS_A_CLASS * n_takers))
    return problem.sampled[draw_rows(len(problem.sampled), size, rng)]


def _starved(problem: Problem, counts: np.ndarray) -> np.ndarray:
    """Classes that get next to none of the samples they are to have."""
    fewest = problem.bounds[0]
    return np.flatnonzero((counts < STARVED * fewest) & (fewest >= LEAST_STARVED * problem.n_units / problem.n_rows))


def _lifted(problem: Problem, potentials: np.ndarray, starved: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Potentials that are raised, class by class, to where a sample says that a class gets about what it is to have.

    The smooth solve and the repair come there in steps of epsilon and of slack: too many for a class far from all rows.
    """
    g = potentials.copy()
    rows = _sampled(problem, rng)
    sample = problem.rows.taken(rows)
    units = np.ones(sample.n_rows) if problem.weights is None else problem.weights[problem.rows.local(rows)]
    _, best, _ = sweep.label(sample, potentials)
    best, units = problem.rows.concat("lift", best, units)
    wanted = problem.bounds[0] * (units.sum() / problem.n_units)
    for some in np.array_split(starved, -(-len(starved) // COLUMNS_AT_ONCE)):
        here = [block[:, some] for _, block in sample.fine.blocks()]
        (columns,) = problem.rows.concat("lift", np.concatenate(here or [np.empty((0, len(some)))]).astype(np.float64))
        for k, column in zip(some, columns.T, strict=True):
            order = np.argsort(best - column)
            last = min(int(np.searchsorted(np.cumsum(units[order]), wanted[k])), len(order) - 1)
            borders = (best - column)[order[last : last + 2]]  # of the last that is to come in, and of the next
            borders = borders[borders < np.inf]
            if len(borders):
                g[k] = max(g[k], borders.mean())
                best = np.maximum(best, column + g[k])
    return g


def _units(movable: Movable, placement: Placement, n_classes: int) -> np.ndarray:
    """How many units of its row each candidate has: all at the label, but for rows that were split before."""
    found, row_of = movable.found, movable.row_of
    rows = found.rows[row_of]
    units = np.where(found.classes == movable.labels[row_of], movable.weights[row_of], 0)
    if len(placement.split_rows):
        keys = rows * n_classes + found.classes
        split_keys = placement.split_rows * n_classes + placement.split_classes
        at = np.minimum(np.searchsorted(keys, split_keys), len(keys) - 1)
        lost = placement.split_rows[keys[at] != split_keys]  # rows whose other classes have become worse
        kept = ~np.isin(placement.split_rows, lost)
        units[np.isin(rows, placement.split_rows[kept])] = 0
        units[at[kept]] = placement.split_units[kept]
    return units


def _placed(movable: Movable, units: np.ndarray, labels: np.ndarray, potentials: np.ndarray, rows: RowSet) -> Placement:
    """Labels after a repair, and the rows that it left in several classes."""
    found, row_of = movable.found, movable.row_of
    taken = np.flatnonzero(units)
    chosen_classes = movable.labels.copy()
    chosen_classes[row_of[taken]] = found.classes[taken]
    times = np.bincount(row_of[taken], minlength=len(found.rows))
    idle = times == 0  # rows without mass, which no repair moves
    if idle.any():
        u = found.scores + potentials[found.classes]
        best = _row_tops(found, u)
        chosen = np.flatnonzero(idle[row_of] & (u == best[row_of]))
        chosen_classes[row_of[chosen]] = found.classes[chosen]
    split = taken[times[row_of[taken]] > 1]
    rising = split[np.argsort(units[split], kind="stable")]
    chosen_classes[row_of[rising]] = found.classes[rising]  # the last to be written counts: most units
    here = (found.rows >= rows.first) & (found.rows < rows.stop)
    labels = labels.copy()
    labels[found.rows[here] - rows.first] = chosen_classes[here]
    return Placement(labels, found.rows[row_of[split]], found.classes[split], units[split])


@dataclass(frozen=True, eq=False)
class Spare:
    """Room that classes may leave free, as rows of the board: a unit of such a row is in its class, or in the hub.

    A class of lo to hi samples has hi places and hi - lo units that may fill them at no cost; a soft one has a unit for
    each place whose price is near to what the place is worth now (of very many, neighbours share a row and a price).
    The hub, a node after the last class, holds the rest.
    """

    classes: np.ndarray  # (V,) int64
    prices: np.ndarray  # (V,) saved where a unit fills a place
    units: np.ndarray  # (V,) int64
    inside: np.ndarray  # (V,) int64: those of them in the class
    places: np.ndarray  # (K,) int64: of each class

    @property
    def any_room(self) -> bool:
        """Whether any size is free."""
        return len(self.classes) > 0


def spare_room(problem: Problem, potentials: np.ndarray, counts: np.ndarray, slack: float, tie: float) -> Spare:
    """The room that counts and potentials leave now; in ties, as much as makes up the places."""
    rule, n_units = problem.rule, problem.n_units
    lo, hi = problem.bounds
    soft = np.flatnonzero(np.isfinite(rule.rho) & rule.wanted)
    ranged = np.flatnonzero(np.isinf(rule.rho) & (lo < hi))
    below = rule.places_below(soft, -potentials[soft] - slack, n_units)
    places = hi.copy()
    places[soft] = rule.places_below(soft, -potentials[soft] + slack, n_units)
    number = places[soft] - below
    width = max(1, -(-int(number.sum()) // MOST_LEVELS))  # levels that are one row, at their mean price
    n_pieces = -(-number // width)
    piece = np.arange(n_pieces.sum()) - np.repeat(np.cumsum(n_pieces) - n_pieces, n_pieces)
    widths = np.minimum(np.repeat(number, n_pieces) - piece * width, width)
    levels = np.repeat(below, n_pieces) + piece * width + widths
    of_levels = np.repeat(soft, n_pieces)
    classes = np.concatenate([ranged, of_levels])
    prices = np.concatenate([np.zeros(len(ranged)), rule.prices(of_levels, levels, n_units, widths)])
    units = np.concatenate([(hi - lo)[ranged], widths])
    gain = prices + potentials[classes]
    least = np.bincount(classes, np.where(gain > tie, units, 0), len(counts))
    most = np.bincount(classes, np.where(gain >= -tie, units, 0), len(counts))
    wanted = np.clip(places - counts, least, most).astype(np.int64)
    # The dearest places, which come last of their class, are the ones to fill.
    after = np.bincount(classes, units, len(counts))[classes] - _running(classes, units)
    return Spare(classes, prices, units, np.clip(wanted[classes] - after, 0, units).astype(np.int64), places)


def _running(classes: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Sum of the units of each row and of those before it of its class; rows of a class lie together."""
    total = np.cumsum(units)
    first = np.flatnonzero(np.diff(classes, prepend=-1))
    before = np.repeat(total[first] - units[first], np.diff(np.append(first, len(classes)))) if len(classes) else total
    return total - before


def _below_best(movable: Movable, potentials: np.ndarray) -> tuple[np.ndarray, float]:
    """By how much each entry's score + potential is below the best of its row, (E,), and what counts as nothing.

    Numbers that lie close together are subtracted exactly. So what is large in a class or a row, and in them alone,
    takes no digits from the others: two entries are tied where they differ by less than *their* numbers are known to.
    """
    found, row_of = movable.found, movable.row_of
    u, sizes = _totals(found, potentials)
    if not len(u):
        return u, 0.0
    below = u
    below -= _row_tops(found, u)[row_of]
    np.minimum(sizes, _row_tops(found, np.where(below == 0, sizes, 0.0))[row_of], out=sizes)
    below[-below <= TIE * sizes] = 0.0
    every = max(1, len(u) // MOST_JUDGED)
    sizes, gaps = sizes[::every], -below[::every]
    usual = np.concatenate([sizes[sizes > 0], gaps[gaps > 0]])
    return below, TIE * float(np.median(usual)) if len(usual) else 0.0


def _totals(found: sweep.Candidates, potentials: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Score + potential of each entry, and how large the two are."""
    g = potentials[found.classes]
    return found.scores + g, np.abs(found.scores) + np.abs(g)


def _row_tops(found: sweep.Candidates, values: np.ndarray) -> np.ndarray:
    """The largest value among the entries of each row; no row is without any."""
    return np.maximum.reduceat(values, np.cumsum(found.sizes) - found.sizes)


def _falls_short(movable: Movable, units: np.ndarray, potentials: np.ndarray) -> bool:
    """Whether the class of some row is below its best one by more than the rounding of its own numbers."""
    found = movable.found
    own_potentials = potentials[found.classes]
    u = found.scores + own_potentials
    if not len(u):
        return False
    taken = np.flatnonzero(units)
    best = _row_tops(found, u)[movable.row_of[taken]]
    return bool((best - u[taken] > rounding_of(best, u[taken], own_potentials[taken], potentials)).any())


def _shortfall(problem: Problem, labels: np.ndarray, potentials: np.ndarray, monitor: Monitor) -> float:
    """By how much the labels are below the best ones at some potentials, in total."""
    _, best, own = sweep.label(problem.rows, potentials, labels)
    monitor.saw("round", problem.n_rows)
    return float(problem.rows.sum("borders", (best - own)[own > -np.inf].sum())[0])


def rounding_of(best: np.ndarray, own: np.ndarray, own_potentials: np.ndarray, potentials: np.ndarray) -> np.ndarray:
    """By how much rows may fall short for no other reason than that float64 rounds, from s + g at best and label.

    Their own numbers alone excuse it: what is large in other rows is no reason, nor is the potential of a class that is
    far above all usual ones, for stored numbers of that size are as exact as others.
    """
    added = np.abs(own - own_potentials) + np.abs(own_potentials)
    return ROUNDED * (np.abs(best) + np.minimum(added, np.abs(own) + 2 * _largest_usual(potentials)))


def _largest_usual(potentials: np.ndarray) -> float:
    """The largest potential, by size, below which there is no jump from the middle ones on."""
    sizes = np.sort(np.abs(potentials[np.isfinite(potentials) & (potentials != 0)]))
    above = sizes[max(len(sizes) - 1, 0) // 2 :]
    jumps = np.flatnonzero(above[1:] > JUMP * above[:-1])
    return float(above[jumps[0]]) if len(jumps) else float(above.max(initial=0.0))


def _between_borders(movable: Movable, units: np.ndarray, potentials: np.ndarray, slack: float) -> np.ndarray:
    """Potentials of the same labels, those that are unusually large in the middle of where they may be.

    A repair ends where one more step would change a label. There the rounding of a large potential is what rows of
    usual size fall short by; between the borders it is nothing.
    """
    found, row_of, g = movable.found, movable.row_of, potentials.copy()
    elsewhere = np.bincount(row_of, units, len(found.sizes))[row_of] > units
    for k in np.flatnonzero(np.isfinite(g) & (np.abs(g) > JUMP * _largest_usual(g))):
        u, here = _totals(found, g)[0], found.classes == k
        others = _row_tops(found, np.where(here, -np.inf, u))[row_of] if len(u) else u
        ahead = u[here] - others[here]
        down = min(ahead[units[here] > 0].min(initial=np.inf), slack)
        up = min(-ahead[elsewhere[here]].max(initial=-np.inf), slack)
        if np.isfinite([up, down]).all():
            g[k] += (up - down) / 2
    return g


def _less(potentials: np.ndarray, fall: np.ndarray, rule: Rule) -> np.ndarray:
    """Potentials that have fallen, with the median at zero where a constant says nothing.

    Unlike a mean, it is where most are: these keep their digits, whatever others are like. What is rounded is rounded
    down, so that no class becomes dearer than it was for the samples of others.
    """
    finite = np.isfinite(potentials)
    g, change = potentials[finite], -fall[finite]
    if rule.shift_free:
        change -= np.median(g + change)
    total = g + change
    result = potentials.copy()
    result[finite] = np.where((total - g == change) & (total - change == g), total, np.nextafter(total, -np.inf))
    return result


def _board(
    movable: Movable, below: np.ndarray, units: np.ndarray, spare: Spare, potentials: np.ndarray, counts: np.ndarray
) -> Board:
    """Samples that may move, then the room that may, with the hub as one more class; potentials begin at zero."""
    found = movable.found
    hub, n_rows, n_spare = len(counts), len(found.rows), len(spare.classes)
    sizes = np.concatenate([found.sizes, np.full(n_spare, 2)])
    classes = np.concatenate([found.classes, np.stack([spare.classes, np.full(n_spare, hub)], 1).ravel()])
    worth = spare.prices + potentials[spare.classes]
    scores = np.concatenate([below, np.stack([worth, np.zeros(n_spare)], 1).ravel()])
    in_hub = spare.units - spare.inside
    filled = counts + np.bincount(spare.classes, spare.inside, hub).astype(np.int64)
    total = counts.sum() + spare.units.sum()
    return Board(
        start=np.concatenate([[0], np.cumsum(sizes)]),
        row_of=np.concatenate([movable.row_of, np.repeat(np.arange(n_rows, n_rows + n_spare), 2)]),
        classes=classes.astype(np.int32),
        scores=scores,
        units=np.concatenate([units, np.stack([spare.inside, in_hub], 1).ravel()]),
        potentials=np.append(np.where(np.isfinite(potentials), 0.0, -np.inf), 0.0),
        counts=np.append(filled, in_hub.sum()),
        targets=np.append(spare.places, total - spare.places.sum()),
    )


def _infeasible(problem: Problem, board: Board, counts: np.ndarray) -> InfeasibleError:
    """Name the classes that some samples cannot leave: all that an overfull class can pass a member on to."""
    lo, hi = problem.bounds
    inside = board.counts > board.targets
    while True:
        movable = np.zeros(len(board.start) - 1, bool)
        movable[board.row_of[(board.units > 0) & inside[board.classes]]] = True
        wider = inside.copy()
        wider[board.classes[movable[board.row_of]]] = True
        if np.array_equal(wider, inside):
            break
        inside = wider
    shut = np.flatnonzero(~inside[:-1]) if inside[-1] else np.flatnonzero(inside[:-1])
    named = [str(k) if k < len(problem.for_new) else "staying unlabelled (abstain)" for k in shut[:10]]
    shown = ", ".join(named) + (", ..." if len(shut) > 10 else "")

    def told(units: int) -> str:
        return f"{units / problem.n_units:.6g}" if problem.weighted else f"{units}"

    units = told(counts[shut].sum())
    what = f"samples of {units} of the mass" if problem.weighted else f"{units} samples"
    if inside[-1]:  # what classes may leave free reaches all of these: others lack samples
        finding, remedy = f"only {what} may go to the", "less"
        wanted = told(lo[shut].sum())
    else:
        finding, remedy = f"{what} may only go to the", "more"
        wanted = told(hi[shut].sum())
    return InfeasibleError(
        f"{finding} {len(shut)} classes {shown}, which are to take {wanted}; allow more pairs (scores of -inf forbid "
        f"them) or give these classes {remedy} mass"
    )
