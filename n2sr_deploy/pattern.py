"""Which pixels of a frame compete to be kept by a draw, and who shares the choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from n2sr_deploy.errors import SettingError, check_choice

Shape = tuple[int, int]
PatternName = Literal["cell", "row", "column"]

PATTERN_NAMES: tuple[PatternName, ...] = ("cell", "row", "column")
MAX_STRIDE = 4


class Window(NamedTuple):
    """A rectangle of cells."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class SamplingPattern:
    """Which pixels compete to be kept, and who shares the choice.

    Raises
    ------
    SettingError
        When a stride is outside 1 to 4, no pixel would be held out, or a choice shared along
        an axis would also thin out that axis.
    """

    stride_y: int
    """Rows in a cell, 1 to 4."""
    stride_x: int
    """Columns in a cell, 1 to 4."""
    shared: Literal["row", "column"] | None = None
    """Cells along this axis keep the same place: whole rows or columns are kept or held out."""

    def __post_init__(self) -> None:
        _check_stride(self.stride)
        along = {"row": self.stride_x, "column": self.stride_y, None: 1}[self.shared]
        if along != 1:
            raise SettingError(
                f"a choice shared along each {self.shared} needs stride 1 along it, not {along}"
            )

    @classmethod
    def named(cls, name: str, stride: int | Shape = 2) -> SamplingPattern:
        """The pattern `cell`, `row` or `column` with a stride of 2 to 4.

        Parameters
        ----------
        name
            ``cell``: one pixel of every cell, each cell on its own (white noise). ``row``: one
            row of every `stride` rows (noise correlated along rows). ``column``: likewise.
        stride
            Along the thinned axes; a pair (stride_y, stride_x) for unequal cells, or as the pattern
            has it: (2, 1) of every second row.

        Returns
        -------
        The pattern.

        Raises
        ------
        SettingError
            When there is no pattern of that name, the stride is out of range, or strides along
            both axes are given to a pattern that thins one.
        """
        check_choice("pattern", name, PATTERN_NAMES)
        sizes = (stride, stride) if isinstance(stride, int) else stride
        _check_stride(sizes)
        if name == "cell":
            return cls(stride_y=sizes[0], stride_x=sizes[1])
        thinned, other = sizes if name == "row" else sizes[::-1]
        if other not in (1, thinned):
            raise SettingError(
                f"stride is {_told(sizes)}, but pattern {name} thins one axis; give one number"
            )
        if name == "row":
            return cls(stride_y=thinned, stride_x=1, shared="row")
        return cls(stride_y=1, stride_x=thinned, shared="column")

    @property
    def name(self) -> PatternName:
        """``cell``, ``row`` or ``column``."""
        return self.shared or "cell"

    @property
    def stride(self) -> Shape:
        """(stride_y, stride_x)."""
        return self.stride_y, self.stride_x

    @property
    def group_size(self) -> int:
        """Pixels in a cell, and draws in a group that keeps each of them once."""
        return self.stride_y * self.stride_x

    @property
    def shift(self) -> Shape | None:
        """By how many pixels, (y, x), the cells of half of the draws are laid elsewhere.

        None where all lie alike. Of two lines that are whole kept or held out, a network cannot
        tell which was kept, and was taught the other only: what it says of a kept one is of a
        neighbour, always the same (docs/decisions/0016-cycle-spinning.md).
        """
        if self.shared is None or self.group_size != 2:
            return None
        return (1, 0) if self.shared == "row" else (0, 1)

    def independent(self, shape: Shape) -> Shape:
        """(rows, columns) of a shape with the axis along which a choice is shared as one."""
        return {"cell": shape, "row": (shape[0], 1), "column": (1, shape[1])}[self.name]

    def cells(self, shape: Shape) -> Shape:
        """The number of cells (rows, columns) that cover a frame of this shape."""
        return -(-shape[0] // self.stride_y), -(-shape[1] // self.stride_x)

    def __str__(self) -> str:
        return f"{self.name}, stride {self.stride_y} x {self.stride_x}"


def _check_stride(stride: Shape) -> None:
    if not all(1 <= pixels <= MAX_STRIDE for pixels in stride) or max(stride) == 1:
        raise SettingError(
            f"stride is {_told(stride)}, but must be 2 to {MAX_STRIDE} along an axis, and 1 to "
            f"{MAX_STRIDE} along the other; 1 along both holds out no pixel"
        )


def _told(stride: Shape) -> str:
    """As `--stride` takes it: 2, or 2,3."""
    return ",".join(map(str, stride if stride[0] != stride[1] else stride[:1]))
