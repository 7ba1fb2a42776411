"""One kind of frame on a GPU: its memory, and the graph of its work."""

from __future__ import annotations

import ctypes
import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from n2sr_deploy.cuda.device import Draws, Key, Part, Pixels, Pooled, Statistics, Values
from n2sr_deploy.cycle_spinning import PoolWeights, n_shifted
from n2sr_deploy.errors import DeviceError
from n2sr_deploy.layout import batches
from n2sr_deploy.tiling import tiles

if TYPE_CHECKING:
    from n2sr_deploy.backends.base import DeviceContext, DeviceNetwork
    from n2sr_deploy.cuda.copying import Copier
    from n2sr_deploy.cuda.device import Device
    from n2sr_deploy.frame import Frame
    from n2sr_deploy.layout import Layout
    from n2sr_deploy.model import ExportedModel
    from n2sr_deploy.pattern import Shape
    from n2sr_deploy.sampling import FloatArray
    from n2sr_deploy.tiling import Tile

_log = logging.getLogger("n2sr")
_KEY_BYTES, _STATISTICS_BYTES = ctypes.sizeof(Key), ctypes.sizeof(Statistics)


class Kind(NamedTuple):
    """What a plan is made for."""

    shape: Shape
    dtype: np.dtype
    n_samples: int


class Plan:
    """The memory of one kind of frame in one slot, and the graph of its work."""

    def __init__(
        self,
        model: ExportedModel,
        network: DeviceNetwork,
        device: Device,
        kind: Kind,
        layout: Layout,
        stream: int,
    ) -> None:
        self.model, self.network, self.device, self.kind = model, network, device, kind
        self._stream = stream
        self.layout = layout
        self.has_run = False
        self._graph: int | None = None
        meta = model.metadata
        lie = meta.pattern.group_size, meta.n_orientations == 8
        others = n_shifted(meta.pattern, kind.n_samples, kind.shape, meta.padded(kind.shape))
        self._unshifted = Draws(0, kind.n_samples - others, *lie)
        self._shifted = Draws(self._unshifted.n_samples, others, *lie) if others else None
        self._batches = list(batches(model, kind.n_samples, layout))
        self._cells = layout.cells(meta.pattern.stride)
        with ExitStack() as opened:
            self._allocate(opened)
            self._contexts = {
                (count, is_transposed): self._context(opened, count, is_transposed)
                for count, is_transposed in {batch[1:] for batch in self._batches}
            }
            self._opened = opened.pop_all()
        self._is_capturable = all(context.is_capturable for context in self._contexts.values())

    def _allocate(self, opened: ExitStack) -> None:
        kind, seen = self.kind, self.layout.seen
        number = 2 if self.network.is_half else 4
        n_pixels = kind.shape[0] * kind.shape[1]
        sizes = {
            "pixels": n_pixels * kind.dtype.itemsize,
            "key": _KEY_BYTES,
            "statistics": _STATISTICS_BYTES,
            "of_result": _STATISTICS_BYTES,
            "scratch": self.device.scratch_bytes(),
            "draws": kind.n_samples * self._cells[0] * self._cells[1] * number,
            "outputs": kind.n_samples * seen[0] * seen[1] * number,
            "mean": n_pixels * 4,
            "std": n_pixels * 4,
        }
        if self._shifted:
            sizes |= {"mean_of_shifted": n_pixels * 4, "std_of_shifted": n_pixels * 4}
        self._at: dict[str, int] = {}
        for name, n_bytes in sizes.items():
            self._at[name] = self.device.allocate(n_bytes)
            opened.callback(self.device.free, self._at[name])
        self._host = {}
        for name in ("pixels", "key", "statistics"):
            self._host[name] = self.device.pinned(sizes[name])
            opened.callback(self.device.unpin, self._host[name])
        self._pixels = self._host["pixels"].view(kind.dtype).reshape(kind.shape)
        self._key = self._host["key"].view(np.uint64)
        self.statistics = self._host["statistics"].view(np.float64)

    def _context(self, opened: ExitStack, count: int, is_transposed: bool) -> DeviceContext:
        height, width = self._cells[::-1] if is_transposed else self._cells
        context = self.network.context((count, 1, height, width), self._stream)
        opened.callback(context.close)
        return context

    def close(self) -> None:
        """Release memory and graph."""
        self._opened.callback(self._forget_graph)
        self._opened.close()

    def _forget_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            self.device.end_graph(graph)

    def fill(self, frame: Frame, key: tuple[int, int], copier: Copier) -> None:
        """Copy a frame and the key of its draws into pinned memory."""
        copier.copy(self._pixels, frame.pixels)
        self._key[:] = key

    def run(self) -> None:
        """Do the work of a frame, recorded the first time, if the network lets it be recorded.

        It leaves the result on the device, since what is recorded always copies to one address.
        """
        if self._graph is None and self._is_capturable:
            self._record()
        if self._graph is not None:
            self.device.replay(self._graph, self._stream)
        else:
            self.enqueue()

    def _record(self) -> None:
        """Where that fails, frames go on unrecorded."""
        try:
            self.device.begin_capture(self._stream)
            try:
                self.enqueue()
            finally:
                self._graph = self.device.end_capture(self._stream)
        except DeviceError as error:
            self._is_capturable = False
            self._forget_graph()
            # Its words only: who kept the error would keep its callers' frames, and their results.
            told = str(error)
            _log.warning("no CUDA graph can be recorded, frames take longer without: %s", told)

    def enqueue(self) -> None:
        """All the work of a frame whose pixels and key are in pinned memory, but `download`."""
        device, at, stream = self.device, self._at, self._stream
        pixels = Pixels(at["pixels"], self.kind.dtype, self.kind.shape, self.kind.shape[1])
        device.upload(at["key"], self._host["key"], stream)
        device.upload(at["pixels"], self._host["pixels"], stream)
        device.statistics(pixels, at["scratch"], at["statistics"], stream)
        for tile in tiles(self.model.metadata, pixels.shape, self.layout.seen):
            self._enqueue_tile(pixels, tile)
        if self._shifted:
            device.pool(self._pooled(pixels, self._shifted), stream)
        device.shift_mean(
            at["mean"], pixels.size, at["scratch"], at["statistics"], at["of_result"], stream
        )
        device.download(self._host["statistics"], at["statistics"], stream)

    def download(self, mean: FloatArray, std: FloatArray) -> None:
        """Copy the result to pinned memory (H, W), which must outlive the copying."""
        self.device.download(mean, self._at["mean"], self._stream)
        self.device.download(std, self._at["std"], self._stream)

    def _without_first(self, pixels: Pixels) -> Pixels:
        """What is left of a frame whose cells are laid elsewhere."""
        shift = self.model.metadata.pattern.shift or (0, 0)
        first = shift[0] * pixels.pitch + shift[1]
        rows, columns = (n - left for n, left in zip(pixels.shape, shift, strict=True))
        return pixels._replace(
            address=pixels.address + first * pixels.dtype.itemsize, shape=(rows, columns)
        )

    def _pooled(self, pixels: Pixels, shifted: Draws) -> Pooled:
        """Where results of both sets lie; the first line has one only."""
        left = self._without_first(pixels)
        first = 4 * ((left.address - pixels.address) // pixels.dtype.itemsize)
        return Pooled(
            self._at["mean"] + first,
            self._at["std"] + first,
            self._at["mean_of_shifted"],
            self._at["std_of_shifted"],
            *left.shape,
            pixels.pitch,
            *PoolWeights.of(self._unshifted.n_samples, shifted.n_samples),
        )

    def _part(self, tile: Tile, pixels: Pixels) -> Part:
        """Where in the outputs a tile is, and how far the frame's rows lie apart."""
        rows, columns = (lines.stop - lines.start for lines in (tile.rows, tile.columns))
        return Part(tile.top, tile.left, rows, columns, *self.layout.seen, pixels.pitch)

    def _enqueue_tile(self, pixels: Pixels, tile: Tile) -> None:
        device, at, stream = self.device, self._at, self._stream
        is_half = self.network.is_half
        number = 2 if is_half else 4
        window, part = tile.window(self.model.metadata.pattern.stride), self._part(tile, pixels)
        input_bytes = window.height * window.width * number
        output_bytes = part.of_height * part.of_width * number
        sets = [(self._unshifted, pixels, "mean", "std")]
        if self._shifted:
            left = self._without_first(pixels)
            sets.append((self._shifted, left, "mean_of_shifted", "std_of_shifted"))
        for draws, of, _, _ in sets:
            device.draw(
                of,
                self.model.metadata.pattern,
                window,
                draws,
                at["key"],
                at["statistics"],
                Values(at["draws"] + draws.first_sample * input_bytes, is_half),
                stream,
            )
        for first, count, is_transposed in self._batches:
            self._contexts[count, is_transposed].enqueue(
                at["draws"] + first * input_bytes, at["outputs"] + first * output_bytes
            )
        offset = 4 * (tile.rows.start * part.pitch + tile.columns.start)
        for draws, _, mean, std in sets:
            device.merge(
                Values(at["outputs"] + draws.first_sample * output_bytes, is_half),
                draws,
                part,
                at["statistics"],
                at[mean] + offset,
                at[std] + offset,
                stream,
            )
