"""Frames through a GPU: upload, standardise, draw, network, merge in one graph, then download.

A `Program` is a network with the memory and the recorded graphs for the frames it has seen; a
`FramePipeline` gives it frames, several in flight, and changes programs between two of them.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Self

from n2sr_deploy.cuda.copying import Copier
from n2sr_deploy.cuda.pinned import PinnedPool
from n2sr_deploy.denoiser import check_frame
from n2sr_deploy.errors import OutOfDeviceMemoryError, SettingError
from n2sr_deploy.frame import Frame
from n2sr_deploy.sampling import checked_key
from n2sr_deploy.slot import Finished, Host, Slot
from n2sr_deploy.words import are, counted

if TYPE_CHECKING:
    from n2sr_deploy.backends.base import DeviceNetwork
    from n2sr_deploy.cuda.device import Device
    from n2sr_deploy.denoiser import Denoised
    from n2sr_deploy.model import ExportedModel
    from n2sr_deploy.sampling import AnyArray

_log = logging.getLogger("n2sr")


class Program:
    """A network on a GPU, with memory and graphs for the frames it has seen.

    Closed, or refused, it closes the network.

    Parameters
    ----------
    model
        The exported model that the network was made of.
    network
        That network, on `device`.
    device
        The GPU.
    n_in_flight
        How many frames at a time: with 2, one is copied while another is computed; with 1, memory
        is saved.
    """

    def __init__(
        self, model: ExportedModel, network: DeviceNetwork, device: Device, n_in_flight: int = 2
    ) -> None:
        if n_in_flight < 1:
            network.close()
            raise SettingError(f"n_in_flight is {n_in_flight}, but must be at least 1")
        self.model = model
        self.network = network
        # Unused at a time: of as many frames as are in flight, of one that the caller looks at,
        # and of the one before.
        self._host = Host(Copier(), PinnedPool(device, n_kept=2 * (n_in_flight + 1)))
        self._promised = n_in_flight
        self._slots = [Slot(model, network, device, self._host) for _ in range(n_in_flight)]
        self._started: deque[Slot | Finished] = deque()

    @property
    def n_in_flight(self) -> int:
        """How many frames are."""
        return len(self._started)

    @property
    def most_in_flight(self) -> int:
        """How many are worked on at a time: fewer than was asked for once memory did not suffice.

        As many as was asked for are taken all the same.
        """
        return len(self._slots)

    def prepare(self, frame: Frame, n_samples: int | None = None) -> None:
        """Plan and record a kind of frame beforehand, in all slots; none may be in flight."""
        if n_samples is None:
            n_samples = self.model.metadata.n_samples
        check_frame(self.model, frame.shape, n_samples)
        for _ in range(2 * len(self._slots)):  # each slot plans, then records
            self.start(frame, n_samples, (0, 0))
            self.finish()

    def start(self, frame: Frame, n_samples: int, key: tuple[int, int]) -> None:
        """Begin with a frame; see `FramePipeline.submit`."""
        n = self.n_in_flight
        if n >= self._promised:
            raise SettingError(
                f"{counted(n, 'frame')} {are(n)} in flight, no more fit; collect one first"
            )
        slot = self._slots[0]
        if slot.is_busy:  # there are fewer slots, for lack of memory
            self._started[self._started.index(slot)] = Finished(slot)
        try:
            slot.start(frame, n_samples, key)
        except OutOfDeviceMemoryError:
            others = self._slots[1:]
            if not any(other.holds_memory for other in others):
                raise
            self._slots = others
            _log.warning("the GPU has memory for %s at a time only", counted(len(others), "frame"))
            self.start(frame, n_samples, key)
            return
        self._slots.append(self._slots.pop(0))
        self._started.append(slot)

    def finish(self) -> Denoised:
        """The oldest frame in flight; see `FramePipeline.collect`."""
        if not self._started:
            raise SettingError("no frame is in flight; submit one first")
        return self._started.popleft().finish()

    def close(self) -> None:
        """Release the GPU's memory and the network; results that were handed out stay."""
        self._started.clear()
        for slot in self._slots:
            slot.close()
        self._host.close()
        self.network.close()


class FramePipeline:
    """Denoises frames on a GPU, several in flight. Not to be shared between threads.

    Results lie where the GPU put them, in pinned memory. They are the caller's: the memory is used
    again when no array looks into it any more. Drop them when done, or copy what is to be kept for
    long; once 2 GiB are kept, further results come in ordinary memory, which takes longer.

    Parameters
    ----------
    program
        What denoises them; it belongs to the pipeline from now on.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._waiting: deque[Program] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def model(self) -> ExportedModel:
        """Which denoises the next frame."""
        return self._program.model

    @property
    def name(self) -> str:
        """What runs it."""
        return self._program.network.name

    @property
    def n_in_flight(self) -> int:
        """How many frames were submitted and not collected."""
        return len(self._waiting)

    @property
    def most_in_flight(self) -> int:
        """How many frames are worth submitting before one is collected; see `Program`."""
        return self._program.most_in_flight

    def submit(
        self,
        frame: Frame | AnyArray,
        n_samples: int | None = None,
        *,
        seed: int = 0,
        frame_index: int | None = None,
    ) -> None:
        """Begin with a frame, and do not wait for it.

        Parameters
        ----------
        frame, n_samples, seed, frame_index
            As for `n2sr_deploy.Denoiser.denoise`. The frame is copied. uint8, uint16, int16 and
            float32 are taken as they are, other types as float32.

        Raises
        ------
        FrameError, SettingError
            As `n2sr_deploy.Denoiser.denoise` does, or when as many frames are in flight as fit.
        ModelError
            When the network was not built for frames of this shape.
        DeviceError
            When the GPU fails: what was in flight in the same slot is lost, and the next frame
            begins anew.
        """
        frame = Frame.of(frame)
        model = self._program.model
        if n_samples is None:
            n_samples = model.metadata.n_samples
        frame_index = frame.index if frame_index is None else frame_index
        check_frame(model, frame.shape, n_samples)
        self._program.start(frame, n_samples, checked_key(seed, frame_index))
        self._waiting.append(self._program)

    def collect(self) -> Denoised:
        """Wait for the oldest frame in flight.

        Returns
        -------
        Its mean and standard deviation. The arrays are the caller's, valid for as long as it keeps
        them, even when the pipeline is closed.

        Raises
        ------
        SettingError
            When no frame is in flight.
        FrameError
            When the frame is constant, or too large for float32 results.
        DeviceError
            When the GPU fails.
        """
        if not self._waiting:
            raise SettingError("no frame is in flight; submit one first")
        program = self._waiting.popleft()
        try:
            return program.finish()
        finally:
            if program is not self._program and program not in self._waiting:
                program.close()

    def denoise(
        self,
        frame: Frame | AnyArray,
        n_samples: int | None = None,
        *,
        seed: int = 0,
        frame_index: int | None = None,
    ) -> Denoised:
        """Denoise one frame, as `n2sr_deploy.Denoiser.denoise` does.

        Raises
        ------
        FrameError, SettingError, ModelError, DeviceError
            As `submit` and `collect` do; SettingError too when another frame is in flight.
        """
        if self._waiting:
            raise SettingError("frames are in flight; collect them first")
        self.submit(frame, n_samples, seed=seed, frame_index=frame_index)
        return self.collect()

    def swap(self, program: Program) -> None:
        """Let another program denoise the frames from now on.

        Frames in flight are not disturbed; the program before is closed when the last of its
        frames was collected. To delay no frame, `Program.prepare` it in another thread before.
        """
        before, self._program = self._program, program
        if before not in self._waiting:
            before.close()

    def close(self) -> None:
        """Release everything; frames in flight are lost."""
        for program in {id(p): p for p in (*self._waiting, self._program)}.values():
            program.close()
        self._waiting.clear()
