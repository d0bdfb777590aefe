"""Messages over binned slack: the inner loops of the elimination.

A budget leaves some slack above the cheapest architecture; an arc spends part of it, counted in whole bins. A message holds one
number per state and per amount of slack. Going one stage back is then, for every state, a weighted sum (or maximum) over its arcs
of the message of the state that the arc leads to, shifted by the bins it spends.

Several budgets lie flat in one axis: the last budget's cells have as many empty cells before them, so that a shift by (i, j) is a
shift by one number and what leaves a row lands in empty cells, which are cleared. All sums are of non-negative numbers, so nothing
cancels and relative errors stay at rounding level however small the shares are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TILE_CELLS = 131_072  # gathered at once: 1 MiB, so that the product that follows finds them in the cache, and calls are few
SMALLEST_TILE = 128


@dataclass(frozen=True)
class Grid:
    """Cells of slack, `bins[b]` for budget b, of which there are one or two; `cells` is the length of the flat axis."""

    bins: tuple[int, ...]

    @property
    def strides(self) -> tuple[int, ...]:
        """How far one bin of each budget moves along the flat axis."""
        return (1,) if len(self.bins) == 1 else (2 * self.bins[1], 1)

    @property
    def none(self) -> int:
        """The cell of no slack."""
        return 0 if len(self.bins) == 1 else self.bins[1]

    @property
    def cells(self) -> int:
        return self.none + sum(stride * (bins - 1) for stride, bins in zip(self.strides, self.bins, strict=True)) + 1

    def shift(self, bins: np.ndarray) -> np.ndarray:
        """(N, budgets) to (N,): the move along the flat axis that spends these bins."""
        return bins @ np.array(self.strides, dtype=np.int64)

    def start(self) -> np.ndarray:
        """(1, cells): one way to have spent nothing."""
        message = np.zeros((1, self.cells))
        message[0, self.none] = 1
        return message

    def full(self, value: float, empty: float, dtype: type) -> np.ndarray:
        """(1, cells): `value` for every amount of slack."""
        message: np.ndarray = np.full((1, self.cells), value, dtype=dtype)
        self.clear(message, empty)
        return message

    def clear(self, message: np.ndarray, empty: float = 0) -> None:
        """Empty the cells of `message` (states, cells) that belong to no amount of slack."""
        if len(self.bins) == 2:
            message.reshape(-1, self.bins[0], 2, self.bins[1])[:, :, 0] = empty

    def reversed(self, message: np.ndarray) -> np.ndarray:
        """`message` by slack spent, where it was by slack left of the whole."""
        if len(self.bins) == 1:
            return message[:, ::-1]
        turned = np.zeros_like(message)
        shape = (len(message), self.bins[0], 2, self.bins[1])
        turned.reshape(shape)[:, :, 1] = message.reshape(shape)[:, ::-1, 1, ::-1]
        return turned


@dataclass(frozen=True, eq=False)
class Moves:
    """Arcs of one stage, those of the same state together and among them the small shifts first."""

    home: np.ndarray  # (A,) the state whose message is computed, ascending
    away: np.ndarray  # (A,) the state whose message is read
    shift: np.ndarray  # (A,) cells
    homes: int
    aways: int

    def bounds(self) -> np.ndarray:
        return np.searchsorted(self.home, np.arange(self.homes + 1))


def padded(message: np.ndarray, *, left: int = 0, right: int = 0, empty: float = 0) -> np.ndarray:
    """A flat copy of `message` (states, cells) with `left` and `right` empty cells around each state's."""
    states, cells = message.shape
    room = np.empty((states, left + cells + right), dtype=message.dtype)  # each cell is written once: large messages are slow to touch
    room[:, :left], room[:, left : left + cells], room[:, left + cells :] = empty, message, empty
    return room.ravel()


def pull(message: np.ndarray, moves: Moves, weight: np.ndarray, grid: Grid) -> np.ndarray:
    """(homes, cells): for each state h and cell c, the sum over its arcs of weight * message[away, c - shift]."""
    cells, result = message.shape[1], np.zeros((moves.homes, message.shape[1]))
    flat = padded(message, left=cells)
    start = moves.away * (2 * cells) + cells - moves.shift
    bounds = moves.bounds()
    for home in range(moves.homes):
        low, high = bounds[home], bounds[home + 1]
        tile = max(SMALLEST_TILE, TILE_CELLS // max(1, high - low))
        for cell in range(0, cells, tile):
            length = min(tile, cells - cell)
            reach = low + np.searchsorted(moves.shift[low:high], cell + length)  # larger shifts read only empty cells
            if reach > low:
                windows = _windows(flat, length)
                result[home, cell : cell + length] = weight[low:reach] @ windows[start[low:reach] + cell]
    grid.clear(result)
    return result


def pull_largest(message: np.ndarray, moves: Moves, gain: np.ndarray, grid: Grid, empty: int) -> np.ndarray:
    """(homes, cells) int64: for each state h and cell c, the largest gain + message[away, c - shift] over its arcs; `empty` without any."""
    cells, result = message.shape[1], np.full((moves.homes, message.shape[1]), empty, dtype=np.int64)
    flat = padded(message, left=cells, empty=empty)
    start = moves.away * (2 * cells) + cells - moves.shift
    bounds = moves.bounds()
    for home in range(moves.homes):
        low, high = bounds[home], bounds[home + 1]
        tile = max(SMALLEST_TILE, TILE_CELLS // max(1, high - low))
        for cell in range(0, cells, tile):
            length = min(tile, cells - cell)
            reach = low + np.searchsorted(moves.shift[low:high], cell + length)
            if reach > low:
                windows = _windows(flat, length)
                np.max(windows[start[low:reach] + cell] + gain[low:reach, None], axis=0, out=result[home, cell : cell + length])
    np.maximum(result, empty, out=result)
    grid.clear(result, empty)
    return result


def meet(spent: np.ndarray, left: np.ndarray, moves: Moves, grid: Grid) -> np.ndarray:
    """(A,): for each arc, the ways to arrive at its state times the ways to finish after it within what is then left.

    spent: (homes, cells) by slack spent before the arc; left: (aways, cells) by slack left after it, cumulative.
    """
    cells, result = spent.shape[1], np.zeros(len(moves.home))
    flat = padded(grid.reversed(left), right=cells)
    start = moves.away * (2 * cells) + moves.shift
    bounds = moves.bounds()
    for home in range(moves.homes):
        low, high = bounds[home], bounds[home + 1]
        tile = max(SMALLEST_TILE, TILE_CELLS // max(1, high - low))
        occupied = np.flatnonzero(spent[home])
        if low == high or not len(occupied):
            continue
        for cell in range(int(occupied[0]), int(occupied[-1]) + 1, tile):
            length = min(tile, cells - cell)
            windows = _windows(flat, length)
            result[low:high] += windows[start[low:high] + cell] @ spent[home, cell : cell + length]
    return result


def _windows(flat: np.ndarray, length: int) -> np.ndarray:
    """(len(flat) - length + 1, length): every run of `length` cells; a view."""
    return np.ndarray((flat.size - length + 1, length), flat.dtype, flat, 0, (flat.itemsize, flat.itemsize))


def scaled_(message: np.ndarray) -> tuple[np.ndarray, int]:
    """`message`, divided in place by a power of two so that its largest entry is about 1, and that power; no digit is lost."""
    power = int(np.frexp(message.max(initial=0))[1])
    for part in (-power // 2, -power - (-power // 2)):  # in two steps: 2^1100 is no float
        message *= 2.0**part
    return message, power
