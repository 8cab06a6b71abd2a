"""Which tensor of another library's checkpoint is which of ours: tables of names, read in both directions."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import Any, NamedTuple

import torch

SHOWN = 8  # names in a message


class Change(NamedTuple):
    """What differs beside the name. One tensor of theirs is one or more of ours; seldom, several of theirs are."""

    take: Callable[..., Sequence[torch.Tensor]]  # of each of theirs
    give: Callable[[Sequence[torch.Tensor]], Any]  # a tensor, or for several of theirs as many


AS_IT_IS = Change(lambda theirs: [theirs], lambda ours: ours[0])
VECTOR = Change(lambda theirs: [theirs.flatten()], lambda ours: ours[0].reshape(1, 1, -1))  # (1, 1, d) ↔ (d,)
TRANSPOSED = Change(lambda theirs: [theirs.t()], lambda ours: ours[0].t())  # (in, out) ↔ (out, in)
# (3 d, ...) ↔ query, key and value, (d, ...) each
STACKED = Change(lambda theirs: theirs.chunk(3), lambda ours: torch.cat(list(ours)))


class Row(NamedTuple):
    """`{}` stands for the number of a layer, the same on both sides. A row of no tensor of ours is only looked at:
    its change raises a ValueError where the tensor is not what the model takes it for, and gives nothing."""

    theirs: str | tuple[str, ...]
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
        self.rows = [([_pattern(name) for name in _filled(row.theirs, None)], row) for row in rows]
        self.beside = [re.compile(pattern) for pattern in beside]

    def take(self, theirs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Their tensors under our names.

        Raises:
            ValueError: for tensors that are in no row, lack those that they are one with, are one of ours twice, or
                that a change refuses.
        """
        taken: dict[str, torch.Tensor] = {}
        unknown = []
        for name in theirs:
            if (found := self._row_of(name)) is not None:
                row, layer = found
                together = _filled(row.theirs, layer)
                if missing := [other for other in together if other not in theirs]:
                    raise ValueError(f"there is {name}, but not {listed(missing)}")
                if name == together[0]:
                    changed = self._changed(row, layer, [theirs[each] for each in together])
                    if twice := changed.keys() & taken.keys():
                        raise ValueError(f"{name} and another tensor are both {listed(twice)}; leave one of them out")
                    taken.update(changed)
            elif not any(pattern.fullmatch(name) for pattern in self.beside):
                unknown.append(name)
        if unknown:
            raise ValueError(f"{counted(unknown, 'tensor')} that no such model has: {listed(unknown)}")
        return taken

    @staticmethod
    def _changed(row: Row, layer: str, theirs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        try:
            taken = [_apart(tensor) for tensor in row.change.take(*theirs)]
            return dict(zip(_filled(row.ours, layer), taken, strict=True))
        except ValueError as error:
            raise ValueError(f"{_filled(row.theirs, layer)[0]}: {error}") from error

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
                changed = row.change.give([left.pop(part) for part in _filled(row.ours, layer)])
                theirs = [changed] if isinstance(changed, torch.Tensor) else changed
                given.update(zip(_filled(row.theirs, layer), theirs, strict=True))
        if left:
            raise ValueError(f"{counted(left, 'tensor')} that the format has no name for: {listed(left)}")
        return given

    def theirs(self, ours: str) -> str:
        """The name of what one of our tensors is read from; our own where no row has it."""
        for _, row in self.rows:
            for part in _filled(row.ours, None):
                pattern = _pattern(part)
                if pattern.fullmatch(ours):
                    return _filled(row.theirs, _number(pattern, ours))[0]
        return ours

    def _row_of(self, theirs: str) -> tuple[Row, str] | None:
        for patterns, row in self.rows:
            for pattern in patterns:
                if pattern.fullmatch(theirs):
                    return row, _number(pattern, theirs)
        return None


def _apart(tensor: torch.Tensor) -> torch.Tensor:
    """In a storage of its own, in the same memory if it is contiguous there: views keep what they are of, and
    `save_pretrained` copies all that shares a storage."""
    tensor = tensor.contiguous()
    storage = tensor.untyped_storage()
    if tensor.is_meta or storage.nbytes() == tensor.nbytes:
        return tensor
    start = tensor.storage_offset() * tensor.element_size()
    part = storage[start : start + tensor.nbytes]
    return tensor.new_empty(0).set_(part, 0, tensor.shape, tensor.stride())


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\{\}", r"(\d+)"))


def _number(pattern: re.Pattern[str], name: str) -> str:
    match = pattern.fullmatch(name)
    return match[1] if match and match.groups() else ""


def _filled(names: str | tuple[str, ...], layer: str | None) -> tuple[str, ...]:
    """Names of a row, of one layer or, with None, still templates."""
    parts = (names,) if isinstance(names, str) else names
    return parts if layer is None else tuple(part.replace("{}", layer) for part in parts)


def counted(names: Sized, what: str) -> str:
    return f"{len(names)} {what}{'' if len(names) == 1 else 's'}"


def listed(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
