"""An architecture: one option for each decision that exists in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from niwaki.space.choice import SpaceError, Value

if TYPE_CHECKING:
    from niwaki.space.space import Space


class Architecture(Mapping[str, Value]):
    """A frozen mapping from the name of each active decision to the option taken, in the order of the space.

    Made by `Space.architecture`, which validates. Equal by content and hashable. `space` is the hash of the space it belongs to.
    """

    __slots__ = ("_choices", "_hash", "space")
    space: str
    _choices: dict[str, Value]
    _hash: int

    def __init__(self, space: str, choices: Mapping[str, Value]) -> None:
        object.__setattr__(self, "space", space)
        object.__setattr__(self, "_choices", dict(choices))
        object.__setattr__(self, "_hash", hash((space, tuple(choices.items()))))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"an Architecture is frozen; {name!r} cannot be set")

    def __getitem__(self, name: str) -> Value:
        try:
            return self._choices[name]
        except KeyError:
            raise KeyError(f"{name!r} is no decision of this architecture; it has {', '.join(self._choices) or 'none'}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._choices)

    def __len__(self) -> int:
        return len(self._choices)

    def __contains__(self, name: object) -> bool:
        return name in self._choices

    def get(self, name: str, default: Any = None) -> Any:
        return self._choices.get(name, default)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Architecture):
            return NotImplemented
        return self.space == other.space and self._choices == other._choices

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple:
        return Architecture, (self.space, self._choices)

    def __repr__(self) -> str:
        return f"Architecture({self._choices!r}, space={self.space!r})"

    def to_json(self) -> dict[str, Any]:
        """`{"space": hash, "choices": {name: option}}`; a tuple becomes a list, which no option can be, so nothing is lost."""
        return {"space": self.space, "choices": {name: listed(option) for name, option in self._choices.items()}}

    @staticmethod
    def from_json(data: Mapping[str, Any], space: Space) -> Architecture:
        """The architecture that `to_json` wrote, checked against `space`."""
        if not isinstance(data, Mapping) or set(data) != {"space", "choices"} or not isinstance(data["choices"], Mapping):
            raise SpaceError(f"an architecture in JSON is {{'space': hash, 'choices': {{name: option}}}}, not {data!r:.200}")
        if data["space"] != space.hash:
            raise SpaceError(f"the architecture belongs to the space {data['space']}, but was read for the space {space.hash}")
        return space.architecture({name: tupled(option) for name, option in data["choices"].items()})


def listed(value: Any) -> Any:
    """`value` with every tuple in it as a list, for JSON."""
    return [listed(part) for part in value] if isinstance(value, tuple) else value


def tupled(value: Any) -> Any:
    """`value` with every list in it as a tuple; undoes `listed`."""
    return tuple(tupled(part) for part in value) if isinstance(value, list) else value
