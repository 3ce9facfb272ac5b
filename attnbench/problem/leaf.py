"""What has every mask that is not made of others? A name, the text it takes, and whole numbers."""

from __future__ import annotations

import operator
from typing import Any, ClassVar

from attnbench.errors import MaskError
from attnbench.problem.masks import LONGEST, Mask


def whole(value: object, what: str, least: int = 0) -> int:
    """The value as an int of at least `least`; raises MaskError that names `what`."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise MaskError(f"{what} is a whole number, not {value!r}") from None
    if not least <= number <= LONGEST:
        raise MaskError(f"{what} is between {least} and 2^30, not {number}")
    return number


def numbers(values: Any, what: str) -> tuple[int, ...]:
    """A list, array or tensor of whole numbers as a tuple, of at least one."""
    plain = values.tolist() if hasattr(values, "tolist") else values
    plain = plain if isinstance(plain, (list, tuple)) else [plain]
    if not plain:
        raise MaskError(f"{what} needs at least one number, 0 if there are none")
    return tuple(whole(value, what) for value in plain)


class Leaf(Mask):
    """A mask that is not made of others; `name` is its word in texts."""

    name: ClassVar[str]
    takes: ClassVar[str]  # what its text takes, shown where it is written wrongly

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset((self.name,))

    @classmethod
    def from_arguments(cls, arguments: tuple[Any, ...]) -> Mask:
        """The mask of the arguments of a text; raises MaskError or TypeError where they are wrong."""
        return cls(*arguments)
