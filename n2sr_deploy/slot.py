"""Room for one frame in flight on a GPU."""

from __future__ import annotations

import time
from collections import OrderedDict
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from n2sr_deploy.cuda.device import PIXEL_TYPES, quietly
from n2sr_deploy.denoiser import Denoised
from n2sr_deploy.errors import ModelError, N2SRError, OutOfDeviceMemoryError, SettingError
from n2sr_deploy.frame import is_resolved
from n2sr_deploy.layout import layouts
from n2sr_deploy.plan import Kind, Plan
from n2sr_deploy.words import counted

if TYPE_CHECKING:
    from n2sr_deploy.backends.base import DeviceNetwork
    from n2sr_deploy.cuda.copying import Copier
    from n2sr_deploy.cuda.device import Device
    from n2sr_deploy.cuda.pinned import PinnedPool
    from n2sr_deploy.frame import Frame
    from n2sr_deploy.model import ExportedModel
    from n2sr_deploy.pattern import Shape
    from n2sr_deploy.sampling import FloatArray

_PLANS_KEPT = 2  # of each slot: frames of other shapes or types


class _InFlight(NamedTuple):
    plan: Plan
    frame: Frame
    mean: FloatArray
    std: FloatArray
    began: float
    enqueued: float


class Host(NamedTuple):
    """What all slots share."""

    copier: Copier
    results: PinnedPool

    def room(self, shape: Shape) -> FloatArray:
        """(H, W) float32, for a result."""
        n_bytes = 4 * shape[0] * shape[1]
        return self.results.take(n_bytes).view(np.float32).reshape(shape)

    def close(self) -> None:
        """Release what is not lent."""
        self.copier.close()
        self.results.close()


class Slot:
    """Room for one frame in flight: a stream, and plans for the kinds of frames it has seen."""

    def __init__(
        self, model: ExportedModel, network: DeviceNetwork, device: Device, host: Host
    ) -> None:
        self._model, self._network, self._device, self._host = model, network, device, host
        self._stream: int | None = None
        self._plans: OrderedDict[Kind, Plan] = OrderedDict()
        self._in_flight: _InFlight | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a frame is in flight in it."""
        return self._in_flight is not None

    @property
    def holds_memory(self) -> bool:
        """Whether it has plans, which hold the GPU's."""
        return bool(self._plans)

    def start(self, frame: Frame, n_samples: int, key: tuple[int, int]) -> None:
        """Enqueue a frame's work; for a kind of frame that is new, plan it and do it at once."""
        began = time.perf_counter()
        own = frame.pixels.dtype
        kind = Kind(frame.shape, own if own in PIXEL_TYPES else np.dtype(np.float32), n_samples)
        try:
            if self._stream is None:
                self._stream = self._device.stream()
            plan = self._plans.get(kind) or self._planned(kind, frame, key, self._stream)
            self._plans.move_to_end(kind)
            if plan.has_run:
                plan.fill(frame, key, self._host.copier)
                plan.run()
            plan.has_run = True
            mean, std = self._host.room(kind.shape), self._host.room(kind.shape)
            plan.download(mean, std)
            self._in_flight = _InFlight(plan, frame, mean, std, began, time.perf_counter())
        except BaseException:  # Ctrl-C too: what was half done must not be used again
            self.close()
            raise

    def _planned(self, kind: Kind, frame: Frame, key: tuple[int, int], stream: int) -> Plan:
        """With as much at once as the memory allows; the frame's work has been done, unrecorded.

        What a library sets up when it first runs must not be recorded.
        """
        while len(self._plans) >= _PLANS_KEPT:
            self._plans.popitem(last=False)[1].close()
        is_full: OutOfDeviceMemoryError | None = None
        for layout in layouts(self._model, kind.shape, kind.n_samples):
            with ExitStack() as opened:
                try:
                    plan = Plan(self._model, self._network, self._device, kind, layout, stream)
                    opened.callback(plan.close)
                    plan.fill(frame, key, self._host.copier)
                    plan.enqueue()
                    self._device.wait(stream)
                except OutOfDeviceMemoryError as error:
                    is_full = error
                    while self._plans:  # of other kinds of frames, which hold memory too
                        self._plans.popitem()[1].close()
                    continue
                except ModelError:
                    if is_full is None:
                        raise
                    break  # the network was built for whole frames only
                opened.pop_all()
                self._plans[kind] = plan
                return plan
        raise OutOfDeviceMemoryError(
            f"the memory of {self._device.name} does not suffice for frames of "
            f"{kind.shape[0]} x {kind.shape[1]} pixels and {counted(kind.n_samples, 'draw')}, "
            "not even in tiles that the network is there for; end other programs that use the GPU, "
            "or use a backend that runs on the CPU"
        ) from is_full

    def finish(self) -> Denoised:
        """Wait for the frame in flight."""
        if self._in_flight is None or self._stream is None:
            raise SettingError("no frame is in flight; submit one first")
        plan, frame, mean, std, began, enqueued = self._in_flight
        self._in_flight = None
        try:
            self._device.wait(self._stream)
        except BaseException:
            self.close()
            raise
        if not is_resolved(plan.statistics[0], plan.statistics[1]):
            frame.mean_and_std()  # tells what is wrong with the frame
        mean, std = self._host.results.kept(mean), self._host.results.kept(std)
        timings = {"enqueue": enqueued - began, "gpu": time.perf_counter() - enqueued}
        return Denoised(mean=mean, std=std, timings=timings)

    def close(self) -> None:
        """Release all there is. The slot begins anew with the next frame."""
        stream, self._stream = self._stream, None
        lent, self._in_flight = self._in_flight, None
        plans = list(self._plans.values())
        self._plans.clear()
        if stream is not None:
            quietly(self._device.wait, stream)
            for plan in plans:
                quietly(plan.close)
            quietly(self._device.end_stream, stream)
        del lent  # not before the GPU writes no more: the memory of its result is used again


class Finished:
    """What became of a frame whose slot another needs, until the caller asks for it."""

    def __init__(self, slot: Slot) -> None:
        self._outcome: Denoised | N2SRError
        try:
            self._outcome = slot.finish()
        except N2SRError as error:  # of this frame, not of the one that needs its slot
            self._outcome = error.with_traceback(None)  # which keeps the frame's memory

    def finish(self) -> Denoised:
        """Give it, or raise it."""
        outcome = self._outcome
        if not isinstance(outcome, N2SRError):
            return outcome
        try:
            raise outcome
        finally:
            del self, outcome  # the error refers to them, and to its callers and their results
