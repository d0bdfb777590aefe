"""An architecture: one option for each decision that exists in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from niwaki.space.choice import SpaceError, Value

if TYPE_CHECKING:
    from niwaki.space.space import Space


class Architecture(Mapping[str, Value]):
    """A frozen mapping from the name of each active decision to the option taken, in the order of the space.

    Made by `Space.architecture`, which validates. Equal by content and hashable. `space` is the hash of the space it belongs to, `key` its
    option numbers in one string of bytes (see `Space.key`). Those that are drawn work out their mapping only once somebody looks at it.
    """

    __slots__ = ("_choices", "_home", "key", "space")
    space: str
    key: bytes
    _choices: dict[str, Value] | None
    _home: Space | None

    def __init__(self, space: str, choices: Mapping[str, Value], key: bytes | None = None) -> None:
        _set_space(self, space)
        _set_choices(self, dict(choices))
        _set_key(self, repr(list(choices.items())).encode() if key is None else key)
        _set_home(self, None)

    @staticmethod
    def of(home: Space, key: bytes) -> Architecture:
        """The architecture of `home` with this canonical key."""
        made = Architecture.__new__(Architecture)
        _set_space(made, home.hash)
        _set_choices(made, None)
        _set_key(made, key)
        _set_home(made, home)
        return made

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"an Architecture is frozen; {name!r} cannot be set")

    def _taken(self) -> dict[str, Value]:
        if self._choices is None:
            assert self._home is not None
            _set_choices(self, self._home.choices(self.key))
        return self._choices  # type: ignore[return-value]

    def __getitem__(self, name: str) -> Value:
        taken = self._taken()
        try:
            return taken[name]
        except KeyError:
            raise KeyError(f"{name!r} is no decision of this architecture; it has {', '.join(taken) or 'none'}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._taken())

    def __len__(self) -> int:
        return len(self._taken())

    def __contains__(self, name: object) -> bool:
        return name in self._taken()

    def get(self, name: str, default: Any = None) -> Any:
        return self._taken().get(name, default)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Architecture):
            return NotImplemented
        return self.key == other.key and self.space == other.space

    def __hash__(self) -> int:
        return hash(self.key)

    def __reduce__(self) -> tuple:
        return Architecture, (self.space, self._taken(), self.key)

    def __repr__(self) -> str:
        return f"Architecture({self._taken()!r}, space={self.space!r})"

    def to_json(self) -> dict[str, Any]:
        """`{"space": hash, "choices": {name: option}}`; a tuple becomes a list, which no option can be, so nothing is lost."""
        return {
            "space": self.space,
            "choices": {name: listed(option) if isinstance(option, tuple) else option for name, option in self._taken().items()},
        }

    @staticmethod
    def from_json(data: Mapping[str, Any], space: Space) -> Architecture:
        """The architecture that `to_json` wrote, checked against `space`."""
        if not isinstance(data, Mapping) or set(data) != {"space", "choices"} or not isinstance(data["choices"], Mapping):
            raise SpaceError(f"an architecture in JSON is {{'space': hash, 'choices': {{name: option}}}}, not {data!r:.200}")
        if data["space"] != space.hash:
            raise SpaceError(f"the architecture belongs to the space {data['space']}, but was read for the space {space.hash}")
        return space.architecture({name: tupled(option) for name, option in data["choices"].items()})


# how the frozen slots are filled
_set_space, _set_choices, _set_key, _set_home = (getattr(Architecture, name).__set__ for name in ("space", "_choices", "key", "_home"))


def listed(value: Any) -> Any:
    """`value` with every tuple in it as a list, for JSON."""
    return [listed(part) for part in value] if isinstance(value, tuple) else value


def tupled(value: Any) -> Any:
    """`value` with every list in it as a tuple; undoes `listed`."""
    return tuple(tupled(part) for part in value) if isinstance(value, list) else value
