"""Rows, classes and units, and what the search for paths keeps beside them; the moves that change both."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from otlabel.compiling import njit

part = njit(
    nogil=True, error_model="numpy", _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True
)  # of what Python calls: kept with that

UNCAPPED = int(np.iinfo(np.int64).max)  # of a row that may have all of its units in one class
NONE, UNLISTED = -1, -2  # in place of an entry: the end of a list, in no list

# Rows of `Work.nodes`: numbers of each class.
FIRST, FRESH = 0, 1  # entry: the first of its sorted members, and of those that came since
LOOKED, MOVES = 2, 3  # moves looked at since its members were sorted, and how many there were then
SETTLED = 4  # when a search settled it, -1 for never
HOPS = 5  # moves on the way there
LEAVES, ENTERS = 6, 7  # entries: the last of these moves
PLACE, HEAP = 8, 9  # place in the heap of classes to settle, and this heap
FOUND = 10  # underfull classes, the nearest first
AT, OTHER = 11, 12  # entries: the move that the search for more paths has come to
PART = 13  # and in which of the two lists
PATH = 14  # classes on its way
N_FIELDS = 15


class Board(NamedTuple):
    """Rows, classes and units; the solver moves `units` and lowers `potentials`, and keeps the rest in step."""

    start: np.ndarray  # (R + 1,) int64: entries start[r] to start[r + 1] belong to row r
    row_of: np.ndarray  # (E,) int64
    caps: np.ndarray  # (R,) int64: the most units that an entry of each row may have
    classes: np.ndarray  # (E,) int32
    scores: np.ndarray  # (E,) float64
    units: np.ndarray  # (E,) int64: how many units of the row have this class now
    potentials: np.ndarray  # (K,) float64
    counts: np.ndarray  # (K,) int64: units in each class, those of rows that cannot move included
    targets: np.ndarray  # (K,) int64


class Work(NamedTuple):
    """What the solver keeps beside the board."""

    after: np.ndarray  # (E,) int64: the member after this one
    bound: np.ndarray  # (E,) float64: its cheapest move when sorted, but for its own class's potential
    nodes: np.ndarray  # (N_FIELDS, 2 K) int64: of each class, then of the rest of its members
    distance: np.ndarray  # (2 K,) float64
    level: np.ndarray  # (K,) float64: this and the potential, at most `slack` of it
    dropped: np.ndarray  # (K,) float64: how far potentials have fallen


@part
def enlist(board, work, entry):
    """Make a member of an entry."""
    node = board.classes[entry]
    work.after[entry] = work.nodes[FRESH, node]
    work.nodes[FRESH, node] = entry


@part
def cost_of(board, leaves, enters):
    """What a move from one entry to another of its row loses now."""
    gained = board.potentials[board.classes[leaves]] - board.potentials[board.classes[enters]]
    return (board.scores[leaves] - board.scores[enters]) + gained


@part
def has_room(board, entry):
    """Whether an entry may have one unit more: of one unit each where rows are capped at all."""
    return board.units[entry] < board.caps[board.row_of[entry]]


@part
def move(board, work, leaves, enters, amount, least):
    """Let `amount` units go from one entry to another of the same row."""
    board.units[leaves] -= amount
    board.units[enters] += amount
    if board.units[enters] >= least and work.after[enters] == UNLISTED:
        enlist(board, work, enters)


@part
def whole(number, step):
    """The largest multiple of a step that is no more than a number."""
    return number - number % step if number < np.inf else number
