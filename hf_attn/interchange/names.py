"""Which tensor of another library's checkpoint is which of ours: tables of names, read in both directions."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import NamedTuple

import torch

SHOWN = 8  # names in a message


class Change(NamedTuple):
    """What differs beside the name. One tensor of theirs is one or more of ours."""

    take: Callable[[torch.Tensor], Sequence[torch.Tensor]]
    give: Callable[[Sequence[torch.Tensor]], torch.Tensor]


AS_IT_IS = Change(lambda theirs: [theirs], lambda ours: ours[0])
VECTOR = Change(lambda theirs: [theirs.flatten()], lambda ours: ours[0].reshape(1, 1, -1))  # (1, 1, d) ↔ (d,)
TRANSPOSED = Change(lambda theirs: [theirs.t()], lambda ours: ours[0].t())  # (in, out) ↔ (out, in)
# (3 d, ...) ↔ query, key and value, (d, ...) each
STACKED = Change(lambda theirs: theirs.chunk(3), lambda ours: torch.cat(list(ours)))


class Row(NamedTuple):
    """`{}` stands for the number of a layer, the same on both sides. A row of no tensor of ours is only looked at:
    its change raises a ValueError where the tensor is not what the model takes it for, and gives nothing."""

    theirs: str
    ours: str | tuple[str, ...]
    change: Change = AS_IT_IS


def with_bias(theirs: str, ours: str) -> list[Row]:
    """The weight and the bias of a layer."""
    return [Row(f"{theirs}.{part}", f"{ours}.{part}") for part in ("weight", "bias")]


def looked_at(theirs: str, check: Callable[[torch.Tensor], None]) -> Row:
    """A tensor that has no counterpart; `check` raises a ValueError if something would be lost without it."""

    def take(tensor: torch.Tensor) -> list[torch.Tensor]:
        check(tensor)
        return []

    return Row(theirs, (), Change(take, lambda ours: ours[0]))


class Names:
    """A table of names.

    Args:
        rows: of a model with its head.
        beside: patterns of what a checkpoint has beside the parameters, as fixed tables and counters.
    """

    def __init__(self, rows: Iterable[Row], beside: Iterable[str] = ()):
        self.rows = [(_pattern(row.theirs), row) for row in rows]
        self.beside = [re.compile(pattern) for pattern in beside]

    def take(self, theirs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Their tensors under our names.

        Raises:
            ValueError: for tensors that are in no row, or that a change refuses.
        """
        taken: dict[str, torch.Tensor] = {}
        unknown = []
        for name, tensor in theirs.items():
            if (found := self._row_of(name)) is not None:
                row, layer = found
                try:
                    taken.update(zip(_filled(row.ours, layer), row.change.take(tensor), strict=True))
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from error
            elif not any(pattern.fullmatch(name) for pattern in self.beside):
                unknown.append(name)
        if unknown:
            raise ValueError(f"{counted(unknown, 'tensor')} that no such model has: {listed(unknown)}")
        return taken

    def give(self, ours: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Our tensors under their names.

        Raises:
            ValueError: for tensors that are in no row.
        """
        left, given = dict(ours), dict[str, torch.Tensor]()
        for _, row in self.rows:
            if not row.ours:
                continue
            first, *_ = _filled(row.ours, None)
            pattern = _pattern(first)
            for name in [name for name in left if pattern.fullmatch(name)]:
                layer = _number(pattern, name)
                given[row.theirs.replace("{}", layer)] = row.change.give(
                    [left.pop(part) for part in _filled(row.ours, layer)]
                )
        if left:
            raise ValueError(f"{counted(left, 'tensor')} that the format has no name for: {listed(left)}")
        return given

    def theirs(self, ours: str) -> str:
        """The name of what one of our tensors is read from; our own where no row has it."""
        for _, row in self.rows:
            for part in _filled(row.ours, None):
                pattern = _pattern(part)
                if pattern.fullmatch(ours):
                    return row.theirs.replace("{}", _number(pattern, ours))
        return ours

    def _row_of(self, theirs: str) -> tuple[Row, str] | None:
        for pattern, row in self.rows:
            if pattern.fullmatch(theirs):
                return row, _number(pattern, theirs)
        return None


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\{\}", r"(\d+)"))


def _number(pattern: re.Pattern[str], name: str) -> str:
    match = pattern.fullmatch(name)
    return match[1] if match and match.groups() else ""


def _filled(ours: str | tuple[str, ...], layer: str | None) -> tuple[str, ...]:
    """The names of a row, of one layer or, with None, still templates."""
    parts = (ours,) if isinstance(ours, str) else ours
    return parts if layer is None else tuple(part.replace("{}", layer) for part in parts)


def counted(names: Sized, what: str) -> str:
    return f"{len(names)} {what}{'' if len(names) == 1 else 's'}"


def listed(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
