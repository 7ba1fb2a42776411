"""Any HDF5 file, NeXus among them: a dataset by its path, by h5py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from n2sr_deploy.errors import FileFormatError, FrameError, NotChosenError
from n2sr_deploy.formats.base import (
    DAMAGE,
    Axis,
    Format,
    FrameFile,
)
from n2sr_deploy.formats.hdf5_file import (
    Hdf5File,
    kind,
)
from n2sr_deploy.formats.hdf5_frames import (
    calibrated,
    falling,
    frame_reader,
)
from n2sr_deploy.formats.hdf5_nodes import (
    attributes,
    is_group,
    is_numeric,
    steps,
    text,
)
from n2sr_deploy.frame import FrameInfo

if TYPE_CHECKING:
    from pathlib import Path

_SMALLEST = 8  # rows and columns of what is taken for an image without being named
_MOST_LISTED = 20
_DEEPEST_VALUES = 6
_COLOURS = (3, 4)
_UNEVEN = 1e-3  # of a step


def _open(path: Path, signal: str | None) -> FrameFile:
    opened = Hdf5File(path)
    try:
        return _opened(opened, signal)
    except BaseException:
        opened.close()
        raise


def _opened(opened: Hdf5File, signal: str | None) -> FrameFile:
    path = opened.path
    nodes = dict(opened.walk())
    images = {
        where: node for where, node in nodes.items() if is_numeric(node) and _is_image(node.shape)
    }
    name = _chosen(opened, nodes, images, signal)
    dataset = images.get(name) or opened.at(name)
    if dataset is None or is_group(dataset):
        raise FileFormatError(f"{path} has no dataset {name}; it holds {_listed(images)}")
    n_axes = len(dataset.shape or ())
    if n_axes == 3 and dataset.shape[-1] in _COLOURS and dataset.shape[0] > _COLOURS[-1]:
        raise FrameError(
            f"{path} holds a colour image at {name} (shape {dataset.shape}); "
            "convert it to one grey channel (H, W) first"
        )
    shape = tuple(dataset.shape[-2:]) if n_axes >= 2 else (0, 0)
    opened.check(dataset, name, shape)
    axes = _axes(opened, name, dataset)
    return FrameFile(
        path,
        shape=shape,
        dtype=dataset.dtype,
        pixels=frame_reader(
            dataset, n_axes - 2, n_axes - 1, range(n_axes - 2), falling(axes[-2], axes[-1])
        ),
        axes=axes[:-2],
        info=_info(opened, axes[-2], axes[-1]),
        signal=name,
        signals=tuple(images),
        closing=opened.close,
    )


def _is_image(shape: tuple[int, ...]) -> bool:
    return len(shape) >= 2 and min(shape[-2:]) >= _SMALLEST and 0 not in shape


def _chosen(
    opened: Hdf5File, nodes: dict[str, Any], images: dict[str, Any], signal: str | None
) -> str:
    """The path of the dataset meant."""
    if signal is not None:
        return "/" + signal.strip("/")
    told = _default(opened, nodes)
    if told is not None:
        return told
    if not images:
        raise FrameError(
            f"{opened.path} holds no image: no dataset of numbers has rows and columns"
        )
    if len(images) > 1:
        raise NotChosenError(
            f"{opened.path} holds {len(images)} datasets that may be images, but n2sr takes one",
            f"Choose it with --signal: {_listed(images)}",
        )
    return next(iter(images))


def _listed(images: dict[str, Any]) -> str:
    listed = [
        f"{where} ({' x '.join(map(str, node.shape))} {node.dtype})"
        for where, node in images.items()
    ]
    more = len(listed) - _MOST_LISTED
    return ", ".join(listed[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


def _default(opened: Hdf5File, nodes: dict[str, Any]) -> str | None:
    """The dataset that NeXus's attributes lead to from the root, or from the only NXdata."""
    where, group = "", opened.root
    for _ in range(8):
        told = attributes(group)
        signal, default = text(told.get("signal")), text(told.get("default"))
        if signal:
            return _if_image(opened, f"{where}/{signal}")
        if not default or default == ".":
            break
        where = default.rstrip("/") if default.startswith("/") else f"{where}/{default}"
        group = opened.at(where)
        if not is_group(group):
            break
    found = {_if_image(opened, path) for path in _signals(nodes)} - {None}
    return found.pop() if len(found) == 1 else None


def _signals(nodes: dict[str, Any]) -> list[str]:
    """What groups of NeXus call their signal."""
    found = []
    for where, node in nodes.items():
        told = attributes(node) if is_group(node) else {}
        if told.get("NX_class") == "NXdata" and text(told.get("signal")):
            found.append(f"{where}/{told['signal']}")
    return found


def _if_image(opened: Hdf5File, where: str) -> str | None:
    try:
        node = opened.at(where)
    except (*DAMAGE, FileFormatError):
        return None
    return where if is_numeric(node) and _is_image(node.shape) else None


def _axes(opened: Hdf5File, name: str, dataset: Any) -> tuple[Axis, ...]:
    """As NeXus tells them beside the dataset, where they are evenly spaced."""
    folder = name.rsplit("/", 1)[0]
    told = attributes(opened.at(folder or "/"))
    names = told.get("axes", [])
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or len(names) != len(dataset.shape):
        names = ["."] * len(dataset.shape)
    axes = []
    for i, (axis, size) in enumerate(zip(names, dataset.shape, strict=True)):
        places = opened.at(f"{folder}/{axis}") if text(axis).strip("./") else None
        offset, scale = _even(places, size)
        unit = text(attributes(places).get("units")) if scale is not None else ""
        axes.append(
            Axis(
                name=text(axis).strip("./") or f"axis {i}",
                size=int(size),
                scale=1.0 if scale is None else scale,
                offset=offset,
                unit=unit or None,
            )
        )
    return tuple(axes)


def _even(places: Any, size: int) -> tuple[float, float | None]:
    """Offset and scale of the axis; no scale where it has none."""
    if not is_numeric(places) or tuple(places.shape) != (size,) or size < 2:
        return 0.0, None
    found = steps(places)
    if found is None:
        return 0.0, None
    offset, scale = found
    middle = float(places[size // 2])
    is_even = abs(offset + scale * (size // 2) - middle) <= _UNEVEN * abs(scale) * size
    return (offset, scale) if is_even else (0.0, None)


def _info(opened: Hdf5File, row: Axis, column: Axis) -> FrameInfo:
    metadata = opened.values(opened.root, _DEEPEST_VALUES)
    return FrameInfo(metadata=metadata, **calibrated(row, column))


FORMAT = Format(
    name="HDF5",
    extensions=(".h5", ".hdf5", ".nxs", ".hdf"),
    recognises=lambda path, head: kind(path, head) == "hdf5",
    open=_open,
)
