"""Architectures as sequences of tokens, one for each decision: what sequence and graph models read."""

from __future__ import annotations

import numpy as np

from niwaki.strategy.strategy import SearchSpace


class Tokens:
    """Token 0 stands for a decision that does not exist; every other for an option, the same wherever the option is.

    Predecessors, operations, widths: options that are equal are one token at all places, which is how models learn from one place for another.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self._numbers: dict[tuple[str, object], int] = {}
        for decision in space.decisions:
            for option in decision.options:
                self._numbers.setdefault((type(option).__name__, option), len(self._numbers) + 1)
        # (options,) each: the token of an option; and (vocabulary,) each: the option of a token, -1 where it is none of this decision's
        self._tokens = [np.array([self._numbers[type(o).__name__, o] for o in d.options], dtype=np.int64) for d in space.decisions]
        self._options = np.full((len(space.decisions), self.vocabulary), -1, dtype=np.int32)
        for position, tokens in enumerate(self._tokens):
            self._options[position, tokens] = np.arange(len(tokens))
        self._conditional = [decision.condition is not True for decision in space.decisions]

    @property
    def vocabulary(self) -> int:
        """How many tokens there are, 0 among them."""
        return len(self._numbers) + 1

    @property
    def length(self) -> int:
        return len(self._tokens)

    def of(self, rows: np.ndarray) -> np.ndarray:
        """int64 (N, L): the tokens of canonical rows of option numbers."""
        columns = [table[rows[:, position]] for position, table in enumerate(self._tokens)]
        tokens = np.stack(columns, axis=1) if columns else np.zeros((len(rows), 0), dtype=np.int64)
        return np.where(self.space.existing(rows), tokens, 0)

    def rows(self, tokens: np.ndarray) -> np.ndarray:
        """int32 (N, L): the canonical rows that tokens spell. ValueError, with the place, where a token is no option there."""
        rows = np.take_along_axis(self._options.T, tokens, axis=0) if len(tokens) else np.zeros(tokens.shape, dtype=np.int32)
        canonical = self.space.canonical_rows(np.maximum(rows, 0))
        wrong = (tokens != 0) & (rows < 0) | (self.of(canonical) != tokens)
        if wrong.any():
            at, position = (int(place) for place in np.argwhere(wrong)[0])
            decision = self.space.decisions[position]
            raise ValueError(
                f"sequence {at} has the token {int(tokens[at, position])} for {decision.name!r}, which is none of {self._tokens[position].tolist()} "
                f"there, or 0 where it does not exist"
            )
        return canonical

    def legal(self, tokens: np.ndarray, position: int) -> np.ndarray:
        """bool (N, vocabulary): what may stand at `position`, where those before it are decided."""
        allowed = np.zeros((len(tokens), self.vocabulary), dtype=bool)
        allowed[:, self._tokens[position]] = True
        if self._conditional[position]:
            rows = np.zeros(tokens.shape, dtype=np.int32)
            if position:
                rows[:, :position] = np.maximum(np.take_along_axis(self._options.T[:, :position], tokens[:, :position], axis=0), 0)
            absent = ~self.space.existing(rows)[:, position]
            allowed[absent] = False
            allowed[absent, 0] = True
        return allowed
