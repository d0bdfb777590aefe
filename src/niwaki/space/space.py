"""A space: decisions in reading order, when each of them exists, and the architectures that follow.

Inside, an architecture is a list of option numbers, one per decision, and a decision that does not exist is held at number 0.
`Space._canonical` is the one place where that is done; conditions may therefore be evaluated without asking who exists.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from math import prod
from random import Random
from typing import Any

import numpy as np

from niwaki.space.architecture import Architecture, listed, tupled
from niwaki.space.choice import SpaceError, Value
from niwaki.space.rows import Description, Existence, Features, choice_features, draw_rows, genotype_keys, option_counts
from niwaki.space.size import FUNCTIONS, Expr, Op, Ref, Table, evaluate, refs

_CODES = {2: "H", 4: "I"}  # of array, by bytes
MOST_STATES = 1_000_000  # of the decisions that later conditions still need, at one place of the count


@dataclass(frozen=True)
class Decision:
    """One decision of a placed network: exactly one of `options` is taken, if `condition` holds.

    condition: a boolean expression over `Ref`s of earlier decisions; the decision exists iff it is true. It must be complete:
    a condition on a decision that may itself not exist includes the condition of that one.
    """

    name: str
    options: tuple[Value, ...]
    condition: Expr = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(self.options))
        if not self.name:
            raise SpaceError(f"a decision needs a name; its options are {self.options}")
        if not self.options:
            raise SpaceError(f"decision {self.name!r} has no options; it needs at least one")
        if len(set(self.options)) < len(self.options):
            raise SpaceError(f"decision {self.name!r} lists an option twice: {self.options}")

    @property
    def ref(self) -> Ref:
        """The decision as it stands in expressions."""
        return Ref(self.name, self.options)


@dataclass(frozen=True)
class Space:
    """The architectures that `decisions` allow. `len` and iteration are over the decisions, `enumerate` and `size` over architectures.

    described: what is known of its architectures beyond their choices, where the space is that of a network.
    """

    decisions: tuple[Decision, ...]
    described: Description | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "decisions", tuple(self.decisions))
        places: dict[str, int] = {}
        for position, decision in enumerate(self.decisions):
            if decision.name in places:
                raise SpaceError(f"decisions {places[decision.name]} and {position} are both named {decision.name!r}; names are unique")
            for ref in refs(decision.condition):
                if ref.name not in places:
                    raise SpaceError(f"the condition of {decision.name!r} refers to {ref.name!r}, which is not an earlier decision")
                if ref.options != self.decisions[places[ref.name]].options:
                    raise SpaceError(
                        f"the condition of {decision.name!r} takes {ref.name!r} to have the options {ref.options}, "
                        f"but they are {self.decisions[places[ref.name]].options}"
                    )
            places[decision.name] = position

    def __len__(self) -> int:
        return len(self.decisions)

    def __iter__(self) -> Iterator[Decision]:
        return iter(self.decisions)

    def __getitem__(self, name: str) -> Decision:
        return self.decisions[self.position(name)]

    def position(self, name: str) -> int:
        """The place of the decision `name` among the decisions."""
        try:
            return self._positions[name]
        except KeyError:
            raise SpaceError(f"{name!r} is no decision of this space{self._hint(name)}") from None

    # ---------------------------------------------------------------- architectures

    def architecture(self, choices: Mapping[str, Value]) -> Architecture:
        """The architecture that takes `choices`: an option for every decision that exists then, and for no other."""
        if unknown := [name for name in choices if name not in self._positions]:
            raise SpaceError("; ".join(f"{name!r} is no decision of this space{self._hint(name)}" for name in unknown))
        indices: list[int] = []
        for position, decision in enumerate(self.decisions):
            exists = self._exists(position, indices)
            if exists and decision.name not in choices:
                raise SpaceError(f"no option is given for {decision.name!r}; its options are {decision.options}")
            if not exists and decision.name in choices:
                raise SpaceError(
                    f"{decision.name!r} does not exist in this architecture, so it cannot be {choices[decision.name]!r}; "
                    f"it exists where {_text(decision.condition)}"
                )
            indices.append(self._option(decision, choices[decision.name]) if exists else 0)
        return self._architecture(indices)

    def key(self, arch: Architecture) -> bytes:
        """The option numbers of `arch`, one per decision and 0 where it does not exist, as unsigned numbers of `key_bytes` bytes each.

        Within a space the keys of equal architectures are equal, and no others.
        """
        self._own(arch)
        return arch.key

    def from_key(self, key: bytes) -> Architecture:
        """The architecture that has this key."""
        if len(key) != len(self.decisions) * self.key_bytes:
            raise SpaceError(f"a key of this space has {len(self.decisions) * self.key_bytes} bytes, not {len(key)}")
        return self.from_indices(self._numbers_of(key))

    def choices(self, key: bytes) -> dict[str, Value]:
        """What the architecture with this key takes: an option for each decision that exists in it."""
        indices = self._numbers_of(key)
        if not self._conditional:
            return {name: options[index] for (name, options), index in zip(self._named, indices, strict=True)}
        absent = self._absent(indices)
        return {
            name: options[index]
            for position, ((name, options), index) in enumerate(zip(self._named, indices, strict=True))
            if position not in absent
        }

    def active(self, choices: Mapping[str, Value]) -> tuple[str, ...]:
        """The names of the decisions that exist under `choices`, which must cover those that conditions ask about."""
        indices: list[int] = []
        for position, decision in enumerate(self.decisions):
            asked = self._exists(position, indices) and (position in self._asked or decision.name in choices)
            if asked and decision.name not in choices:
                raise SpaceError(f"no option is given for {decision.name!r}, on which others depend; its options are {decision.options}")
            indices.append(self._option(decision, choices[decision.name]) if asked else 0)
        return tuple(d.name for position, d in enumerate(self.decisions) if self._exists(position, indices))

    def indices(self, architectures: Iterable[Architecture]) -> list[list[int]]:
        """Option numbers, one row per architecture and one column per decision; 0 where the decision does not exist."""
        return [self._indices(arch) for arch in architectures]

    def from_indices(self, row: Sequence[int]) -> Architecture:
        """The architecture with these option numbers; numbers of decisions that do not exist are ignored."""
        if len(row) != len(self.decisions):
            raise SpaceError(f"a row of option numbers has {len(row)} entries, but the space has {len(self.decisions)} decisions")
        for decision, index in zip(self.decisions, row, strict=True):
            if not 0 <= index < len(decision.options):
                raise SpaceError(f"{decision.name!r} has {len(decision.options)} options, so none has the number {index}")
        return self._architecture(self._canonical([int(index) for index in row]))

    # ---------------------------------------------------------------- drawing and moving

    def sample(self, rng: Random) -> Architecture:
        """An architecture drawn choice by choice, every option of an existing decision equally likely."""
        indices: list[int] = []
        for position, decision in enumerate(self.decisions):
            indices.append(rng.randrange(len(decision.options)) if self._exists(position, indices) else 0)
        return self._architecture(indices)

    def sample_uniform(self, rng: Random) -> Architecture:
        """An architecture drawn so that all architectures of the space are equally likely."""
        ticket, indices = rng.randrange(self.size), []
        state: tuple[int, ...] = ()
        for position, forks in enumerate(self._forks):
            fork = forks.get(state)
            for first, span, ways, following in fork if fork is not None else self._fork(position, state):
                if ticket < span:
                    taken, ticket = divmod(ticket, ways)
                    indices.append(first + taken)
                    state = following
                    break
                ticket -= span
        return self._architecture(indices)

    def enumerate(self, after: Architecture | None = None) -> Iterator[Architecture]:
        """All architectures, the last decision moving fastest; there are `size` of them. after: only those that come later than it."""
        indices = [0] * len(self.decisions) if after is None else self._successor(self._indices(after))
        while indices is not None:
            yield self._architecture(indices)
            indices = self._successor(indices)

    def neighbours(self, arch: Architecture) -> Iterator[Architecture]:
        """All architectures that take another option at exactly one decision; decisions that this brings to life take their first."""
        indices = self._indices(arch)
        for position, option in self._moves(indices):
            yield self._architecture(self._canonical(indices[:position] + [option] + indices[position + 1 :]))

    def mutate(self, arch: Architecture, rng: Random) -> Architecture:
        """A uniformly drawn change of one decision of `arch`; decisions that this brings to life are drawn, too."""
        indices = self._indices(arch)
        absent = self._absent(indices) if self._conditional else ()
        others = [0 if position in absent else more for position, more in enumerate(self._others)] if absent else self._others
        if not (moves := sum(others)):
            raise SpaceError("this architecture has no neighbour: none of its decisions has a second option")
        move, changed = rng.randrange(moves), 0
        while move >= others[changed]:
            move -= others[changed]
            changed += 1
        after = indices.copy()
        after[changed] = move + (move >= indices[changed])
        if changed in self._asked:
            self._revive(after, absent, rng)
        return self._architecture(after)

    def cross(self, first: Architecture, second: Architecture, rng: Random) -> Architecture:
        """Uniform crossover: each decision as the one or the other takes it, at even odds; as the one that has it, where one has; else drawn."""
        parents = self._indices(first), self._indices(second)
        if not self._conditional:
            return self._architecture([pair[rng.random() < 0.5] for pair in zip(*parents, strict=True)])
        lacking = tuple(self._absent(indices) for indices in parents)
        child: list[int] = []
        for position, decision in enumerate(self.decisions):
            having = [indices[position] for indices, absent in zip(parents, lacking, strict=True) if position not in absent]
            if not self._exists(position, child):
                child.append(0)
            elif len(having) == 2:
                child.append(having[rng.random() < 0.5])
            else:
                child.append(having[0] if having else rng.randrange(len(decision.options)))
        return self._architecture(child)

    # ---------------------------------------------------------------- many architectures at once, as rows of option numbers

    def canonical_rows(self, rows: np.ndarray) -> np.ndarray:
        """int32 (N, decisions): `rows` with 0 for every decision that does not exist."""
        return self.existence.canonical_(np.array(rows, dtype=np.int32).reshape(len(rows), len(self)))

    def existing(self, rows: np.ndarray) -> np.ndarray:
        """bool (N, decisions): which decisions exist in each of the rows."""
        return self.existence.of(self.canonical_rows(rows))

    def holds(self, rows: np.ndarray) -> np.ndarray:
        """bool (N,): which canonical rows are architectures of this space: all of them, for it has no budget."""
        return np.ones(len(rows), dtype=bool)

    def sample_many(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """int32 (count, decisions): independent draws, every architecture as likely."""
        return draw_rows(self, count, generator)

    def canonical_keys(self, rows: np.ndarray) -> np.ndarray:
        """uint64 (N,): equal for architectures that compute the same, as far as the space knows; else for equal rows only."""
        rows = self.canonical_rows(rows)
        return genotype_keys(rows) if self.described is None else self.described.keys(rows)

    def features(self, rows: np.ndarray) -> Features:
        """Architectures as points: the options taken, the paths that they make together where branches meet, and how many there are of what: of
        decisions with the same options that take each of them, and, in the parts that have paths, of layers that are run."""
        rows = self.canonical_rows(rows)
        choices, counts = choice_features(self, rows), option_counts(self, rows)
        if self.described is None:
            return Features(choices, np.zeros((len(rows), 0), dtype=np.float32), counts)
        return Features(choices, self.described.paths(rows), np.concatenate([counts, self.described.layers(rows)], axis=1))

    def flow(self) -> np.ndarray:
        """float32 (D + 2, D + 2): how data flow from the input (0) over the decisions (1 to D) to the output; [i, j] = 1 where j reads i.

        In a space that is not of a network each decision reads the one before it.
        """
        return np.eye(len(self) + 2, k=1, dtype=np.float32) if self.described is None else self.described.flow()

    def depends_on(self, position: int) -> tuple[int, ...]:
        """The positions of the decisions that say whether the one at `position` exists."""
        return self._conditions[position][1]

    def exists_given(self, position: int, options: tuple[int, ...]) -> bool:
        """Whether the decision at `position` exists where those that it depends on take these option numbers."""
        condition, parents, answers = self._conditions[position]
        return self._answer(condition, parents, answers, options) if parents else bool(condition)

    def branches(self, position: int, state: tuple[int, ...]) -> list[tuple[range, int, tuple[int, ...]]]:
        """At `position`, in a `state` of what conditions still ask about, () at the first: options that lead on alike, how many ways there
        are after each, and the state to which they lead."""
        return [(options, self._completions[position + 1][after], after) for options, after in self._branches(position, state)]

    # ---------------------------------------------------------------- size, identity, JSON

    @cached_property
    def size(self) -> int:
        """The number of architectures (genotypes), exact."""
        return self._completions[0][()]

    @cached_property
    def assignments(self) -> int:
        """The options of all decisions multiplied, as if each always existed: the size that TuNAS and others quote."""
        return prod(len(decision.options) for decision in self.decisions)

    @cached_property
    def hash(self) -> str:
        """16 hexadecimal digits of the SHA-256 of the space's canonical JSON."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        decisions = []
        for decision in self.decisions:
            entry: dict[str, Any] = {"name": decision.name, "options": listed(decision.options)}
            if decision.condition is not True:
                entry["condition"] = _expr_to_json(decision.condition)
            decisions.append(entry)
        return {"decisions": decisions}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Space:
        known: dict[str, Ref] = {}
        decisions = []
        for entry in data["decisions"]:
            decision = Decision(entry["name"], tupled(entry["options"]), _expr_from_json(entry.get("condition", True), known))
            known[decision.name] = decision.ref
            decisions.append(decision)
        return Space(tuple(decisions))

    # ---------------------------------------------------------------- inside: option numbers

    @cached_property
    def key_bytes(self) -> int:
        """Bytes of one option number in a key."""
        most = max((len(decision.options) for decision in self.decisions), default=1)
        return 1 if most <= 2**8 else 2 if most <= 2**16 else 4

    def _numbers_of(self, key: bytes) -> list[int]:
        return list(key) if self.key_bytes == 1 else list(array(_CODES[self.key_bytes], key))

    @cached_property
    def _named(self) -> tuple[tuple[str, tuple[Value, ...]], ...]:
        return tuple((decision.name, decision.options) for decision in self.decisions)

    @cached_property
    def existence(self) -> Existence:
        """Which decisions exist, for many rows at once."""
        return Existence(self)

    @cached_property
    def _others(self) -> list[int]:
        """For each decision how many options there are beside the one taken."""
        return [len(decision.options) - 1 for decision in self.decisions]

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {decision.name: position for position, decision in enumerate(self.decisions)}

    @cached_property
    def _conditions(self) -> tuple[tuple[Expr, tuple[int, ...], dict[tuple[int, ...], bool]], ...]:
        """For each decision its condition, the positions it asks about, and the answers found so far."""
        return tuple((d.condition, tuple(self._positions[ref.name] for ref in refs(d.condition)), {}) for d in self.decisions)

    @cached_property
    def _asked(self) -> frozenset[int]:
        """The positions of decisions on which some condition depends."""
        return frozenset(parent for _, parents, _ in self._conditions for parent in parents)

    @cached_property
    def _conditional(self) -> tuple[int, ...]:
        """The positions of decisions that do not always exist."""
        return tuple(position for position, (condition, _, _) in enumerate(self._conditions) if condition is not True)

    def _absent(self, indices: Sequence[int]) -> set[int]:
        """The positions of the decisions that do not exist under these canonical option numbers."""
        absent, conditions = set(), self._conditions
        for position in self._conditional:
            condition, parents, answers = conditions[position]
            asked = tuple([indices[p] for p in parents])
            exists = answers.get(asked)
            if not (self._answer(condition, parents, answers, asked) if exists is None else exists):
                absent.add(position)
        return absent

    def _revive(self, indices: list[int], absent: Container[int], rng: Random) -> None:
        """Makes `indices` canonical after a change; decisions that did not exist before it (`absent`), and do now, are drawn."""
        for position in self._conditional:
            if not self._exists(position, indices):
                indices[position] = 0
            elif position in absent:
                indices[position] = rng.randrange(len(self.decisions[position].options))

    def _exists(self, position: int, indices: Sequence[int]) -> bool:
        """Whether the decision at `position` exists, given canonical option numbers of all before it."""
        condition, parents, answers = self._conditions[position]
        return bool(condition) if not parents else self._answer(condition, parents, answers, tuple([indices[p] for p in parents]))

    def _answer(self, condition: Expr, parents: tuple[int, ...], answers: dict[tuple[int, ...], bool], asked: tuple[int, ...]) -> bool:
        answer = answers.get(asked)
        if answer is None:
            taken = {self.decisions[p].name: self.decisions[p].options[i] for p, i in zip(parents, asked, strict=True)}
            answer = answers[asked] = bool(evaluate(condition, taken))
        return answer

    def _canonical(self, indices: list[int]) -> list[int]:
        """`indices` with 0 for every decision that does not exist."""
        if not self._conditional:
            return indices
        canonical = indices.copy()
        for position in self._conditional:  # a condition asks about earlier decisions alone, which are canonical by then
            if canonical[position] and not self._exists(position, canonical):
                canonical[position] = 0
        return canonical

    def _architecture(self, indices: Sequence[int]) -> Architecture:
        """The architecture with these canonical option numbers."""
        return Architecture.of(self, bytes(indices) if self.key_bytes == 1 else array(_CODES[self.key_bytes], indices).tobytes())

    def _indices(self, arch: Architecture) -> list[int]:
        self._own(arch)
        return self._numbers_of(arch.key)

    def _own(self, arch: Architecture) -> None:
        if arch.space != self.hash:
            raise SpaceError(f"the architecture belongs to the space {arch.space}, but was given to the space {self.hash}")

    @cached_property
    def _numbers(self) -> tuple[dict[Value, int], ...]:
        return tuple({option: number for number, option in enumerate(d.options)} for d in self.decisions)

    def _option(self, decision: Decision, option: Value) -> int:
        number = None if isinstance(option, (list, dict, set)) else self._numbers[self._positions[decision.name]].get(option)
        if number is None:
            raise SpaceError(f"{decision.name!r} cannot be {option!r}; its options are {decision.options}")
        return number

    def _moves(self, indices: list[int]) -> list[tuple[int, int]]:
        """(position, other option number) of every change of one existing decision."""
        return [
            (position, option)
            for position, decision in enumerate(self.decisions)
            if self._exists(position, indices)
            for option in range(len(decision.options))
            if option != indices[position]
        ]

    def _successor(self, indices: list[int]) -> list[int] | None:
        """The next canonical option numbers in reading order; the zeros after the moved place are canonical by themselves."""
        for position in reversed(range(len(self.decisions))):
            if indices[position] + 1 < len(self.decisions[position].options) and self._exists(position, indices):
                return indices[:position] + [indices[position] + 1] + [0] * (len(indices) - position - 1)
        return None

    # ---------------------------------------------------------------- inside: counting by elimination along the decisions

    @cached_property
    def _needed(self) -> tuple[tuple[int, ...], ...]:
        """For each position, and the end, the earlier positions about which a condition from there on still asks."""
        last = {p: position for position, (_, parents, _) in enumerate(self._conditions) for p in parents}
        return tuple(tuple(p for p in sorted(last) if p < position <= last[p]) for position in range(len(self.decisions) + 1))

    def _branches(self, position: int, state: tuple[int, ...]) -> list[tuple[range, tuple[int, ...]]]:
        """The options of one decision, grouped by the state (option numbers of `_needed`) to which they lead."""
        known = dict(zip(self._needed[position], state, strict=True))
        condition, parents, answers = self._conditions[position]
        exists = self._answer(condition, parents, answers, tuple([known[p] for p in parents])) if parents else bool(condition)
        options = range(len(self.decisions[position].options)) if exists else range(1)
        following = self._needed[position + 1]
        if position in following:
            return [(range(i, i + 1), tuple([i if p == position else known[p] for p in following])) for i in options]
        return [(options, tuple([known[p] for p in following]))]

    @cached_property
    def _forks(self) -> tuple[dict[tuple[int, ...], list[tuple[int, int, int, tuple[int, ...]]]], ...]:
        """For each position the forks that draws have met so far; see `_fork`."""
        return tuple({} for _ in self.decisions)

    def _fork(self, position: int, state: tuple[int, ...]) -> list[tuple[int, int, int, tuple[int, ...]]]:
        """The branches of a decision: first option, ways to go on with all of its options, with one of them, and the state that follows."""
        ways = self._completions[position + 1]
        fork = [(opts[0], len(opts) * ways[following], ways[following], following) for opts, following in self._branches(position, state)]
        self._forks[position][state] = fork
        return fork

    @cached_property
    def _completions(self) -> list[dict[tuple[int, ...], int]]:
        """For each position and each reachable state there, the number of ways to take the decisions from there on."""
        reached: list[dict[tuple[int, ...], int]] = [{(): 0}]
        for position, decision in enumerate(self.decisions):
            reached.append({following: 0 for state in reached[-1] for _, following in self._branches(position, state)})
            if len(reached[-1]) > MOST_STATES:
                open_names = ", ".join(self.decisions[p].name for p in self._needed[position + 1])
                raise SpaceError(f"after {decision.name!r} the conditions depend on too many decisions at once to count: {open_names}")
        reached[-1] = dict.fromkeys(reached[-1], 1)
        for position in reversed(range(len(self.decisions))):
            for state in reached[position]:
                ways = sum(len(options) * reached[position + 1][following] for options, following in self._branches(position, state))
                reached[position][state] = ways
        return reached

    def _hint(self, name: str) -> str:
        close = get_close_matches(name, self._positions, n=3)
        if close:
            return f"; did you mean {' or '.join(map(repr, close))}?"
        shown = ", ".join(list(self._positions)[:12])
        return f"; it has {shown}{', ...' if len(self) > 12 else ''}" if shown else "; it has no decisions"


def _expr_to_json(expr: Expr) -> Any:
    if isinstance(expr, Op):
        return {"function": expr.function, "args": [_expr_to_json(arg) for arg in expr.args]}
    if isinstance(expr, Ref):
        return {"decision": expr.name}
    if isinstance(expr, Table):
        return {"decisions": [ref.name for ref in expr.refs], "values": listed(expr.values)}
    return listed(expr)


def _expr_from_json(data: Any, known: Mapping[str, Ref]) -> Expr:
    if not isinstance(data, dict):
        return tupled(data)
    if "function" in data:
        if data["function"] not in FUNCTIONS:
            raise SpaceError(f"{data['function']!r} is no function of sizes; there are {', '.join(FUNCTIONS)}")
        return Op(data["function"], tuple(_expr_from_json(arg, known) for arg in data["args"]))
    asked = data["decisions"] if "decisions" in data else [data["decision"]]
    if unknown := [name for name in asked if name not in known]:
        raise SpaceError(f"a condition refers to {', '.join(map(repr, unknown))}, which is not an earlier decision")
    return Table(tuple(known[name] for name in asked), tupled(data["values"])) if "decisions" in data else known[asked[0]]


def _text(expr: Expr) -> str:
    """`expr` as a reader would write it, for messages."""
    if isinstance(expr, Ref):
        return expr.name
    if isinstance(expr, Table):
        return f"a condition on {', '.join(ref.name for ref in expr.refs)} holds"
    if not isinstance(expr, Op):
        return repr(expr)
    args = [_text(arg) for arg in expr.args]
    if expr.function == "not":
        return f"not ({args[0]})"
    if expr.function in ("and", "or", "+", "-", "*", "//", "/", ">", "==", "in"):
        return f" {expr.function} ".join(f"({arg})" if " and " in arg or " or " in arg else arg for arg in args)
    return f"{expr.function}({', '.join(args)})"
