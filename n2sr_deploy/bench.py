"""How long a frame takes: what `n2sr bench` measures, and how two measurements compare."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from n2sr_deploy.doctor import report
from n2sr_deploy.errors import SettingError, check_choice
from n2sr_deploy.opening import open_denoiser
from n2sr_deploy.pipeline import FramePipeline
from n2sr_deploy.sampling import PIXEL_TYPES
from n2sr_deploy.words import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from n2sr_deploy.model import ExportedModel
    from n2sr_deploy.opening import Opened
    from n2sr_deploy.pattern import Shape
    from n2sr_deploy.sampling import AnyArray

FORMAT_VERSION = 2  # 1: a frame's time in all was the sum of its stages
PERCENTILES = 50, 90, 99
N_IN_FLIGHT = 2  # on a GPU: one is copied while another is computed
_DIFFERENT_FRAMES = 4  # taken in turn, or the processor's caches are measured
_SAME = "backend", "size", "n_samples", "dtype"  # what two rows must agree in to be compared


class _Spent(NamedTuple):
    """Seconds that a frame took."""

    stages: Mapping[str, float]
    total: float  # by the clock: more than the stages tell of


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is measured."""

    sizes: Sequence[Shape]
    """Of frames, (H, W) each."""
    backends: Sequence[str]
    """Names of backends, or ``auto``."""
    dtype: str = "uint16"
    """Of the frames' pixels, one of `n2sr_deploy.sampling.PIXEL_TYPES`."""
    n_samples: int | None = None
    """M; None: the model's own for live frames."""
    n_frames: int = 100
    """Of each size on each backend."""
    n_warm_up: int = 2 * N_IN_FLIGHT
    """Frames before those, not counted: for each in flight, a GPU plans one and records one."""

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, map(str, PIXEL_TYPES))
        if self.n_frames < 1:
            raise SettingError(f"frames is {self.n_frames}, but at least one must be measured")

    @property
    def n_rounds(self) -> int:
        """Frames of all sizes, those to warm up included."""
        return len(self.sizes) * (self.n_warm_up + self.n_frames)


def measure(
    model: ExportedModel, workload: Workload, progress: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """Denoise random frames, each size on all backends in turn, and time every stage.

    Parameters
    ----------
    model
        The exported model.
    workload
        Sizes, backends and so on.
    progress
        Called `Workload.n_rounds` times, after each frame that all backends have denoised.

    Returns
    -------
    What JSON keeps: ``environment``, ``model``, and ``rows``, one for each size and backend, with
    the percentiles of every stage in milliseconds, and those of the time in all, by the clock
    around each frame. Frames of all backends alternate, so that a
    busy machine slows them alike. On a GPU, ``frames_per_s_in_flight`` tells what as many frames
    again take with `N_IN_FLIGHT` in flight; on a CPU frames come one after another, and it is None.

    Raises
    ------
    FrameError, SettingError, ModelError, MissingExtraError
        As `Denoiser` does.
    """
    n_samples = workload.n_samples or model.metadata.n_live_samples
    workload = replace(workload, n_samples=n_samples)
    rows: list[dict[str, Any]] = []
    for size in workload.sizes:
        with ExitStack() as opened:
            denoisers: list[Opened] = []
            for name in workload.backends:
                denoisers.append(
                    open_denoiser(
                        model,
                        name,
                        shape=size,
                        n_samples=workload.n_samples,
                        n_in_flight=N_IN_FLIGHT,
                    )
                )
                opened.callback(denoisers[-1].close)
            frames = _random_frames(size, workload.dtype)
            taken = _timed(denoisers, frames, workload, progress)
            for denoiser, spent in zip(denoisers, taken, strict=True):
                in_flight = _in_flight_per_s(denoiser, frames, workload)
                row = _row(denoiser, size, workload.dtype, n_samples, spent)
                rows.append({**row, "frames_per_s_in_flight": in_flight})
    meta = model.metadata
    return {
        "n2sr_bench": FORMAT_VERSION,
        "environment": dict(report()),
        "model": {
            "preset": meta.preset,
            "precision": meta.precision,
            "pattern": str(meta.pattern),
            "weights_sha256": meta.weights_sha256,
            "mac_per_pixel": meta.mac_per_pixel,
            "bytes": len(model.onnx),
        },
        "rows": rows,
        "peak_memory_bytes": _peak_memory(),
    }


def _random_frames(size: Shape, dtype: str) -> list[AnyArray]:
    """Poisson counts, other ones in each."""
    rng = np.random.default_rng(0)
    return [rng.poisson(100, size).astype(dtype) for _ in range(_DIFFERENT_FRAMES)]


def _timed(
    denoisers: list[Opened],
    frames: list[AnyArray],
    workload: Workload,
    progress: Callable[[], object],
) -> list[list[_Spent]]:
    """For each denoiser, what each frame took."""
    taken: list[list[_Spent]] = [[] for _ in denoisers]
    for n in range(workload.n_warm_up + workload.n_frames):
        for denoiser, spent in zip(denoisers, taken, strict=True):
            frame = frames[n % len(frames)]
            began = time.perf_counter()
            done = denoiser.denoise(frame, workload.n_samples, frame_index=n)
            ended = time.perf_counter()
            if n >= workload.n_warm_up:
                spent.append(_Spent(done.timings, ended - began))
        progress()
    return taken


def _in_flight_per_s(denoiser: Opened, frames: list[AnyArray], workload: Workload) -> float | None:
    """Frames a second by the clock; None where no two can be in flight."""
    if not isinstance(denoiser, FramePipeline) or denoiser.most_in_flight < N_IN_FLIGHT:
        return None
    done: list[float] = []
    for n in range(3 * N_IN_FLIGHT + workload.n_frames):
        if denoiser.n_in_flight == N_IN_FLIGHT:
            denoiser.collect()
            done.append(time.perf_counter())
        denoiser.submit(frames[n % len(frames)], workload.n_samples, frame_index=n)
    while denoiser.n_in_flight:
        denoiser.collect()
    counted = done[-workload.n_frames - 1 :]  # by then, memory for results is there
    return (len(counted) - 1) / (counted[-1] - counted[0])


def _row(
    denoiser: Opened,
    size: Shape,
    dtype: str,
    n_samples: int,
    spent: list[_Spent],
) -> dict[str, Any]:
    stages = {name: 1e3 * np.array([one.stages[name] for one in spent]) for name in spent[0].stages}
    total = 1e3 * np.array([one.total for one in spent])
    meta = denoiser.model.metadata
    n_pixels = size[0] * size[1]
    return {
        "backend": denoiser.name,
        "size": list(size),
        "n_samples": n_samples,
        "dtype": dtype,
        "frames": len(spent),
        "stages_ms": {name: _percentiles(values) for name, values in stages.items()},
        "total_ms": _percentiles(total),
        "frames_per_s": float(1e3 / np.median(total)),
        "own_share": _own_share(stages, total),
        "mac_per_pixel": meta.mac_per_pixel and n_samples * meta.mac_per_pixel,
        "bytes_in": n_pixels * np.dtype(dtype).itemsize,
        "bytes_out": n_pixels * 2 * 4,  # mean and standard deviation, float32
    }


def _own_share(spent: dict[str, AnyArray], total: AnyArray) -> float | None:
    """Of the time, what is not the network's; None where only the GPU knows."""
    return float(np.median(1 - spent["infer"] / total)) if "infer" in spent else None


def _percentiles(values: AnyArray) -> dict[str, float]:
    found = np.percentile(values, PERCENTILES)
    return {f"p{p}": float(value) for p, value in zip(PERCENTILES, found, strict=True)}


def _peak_memory() -> int | None:
    """Of this process; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def table(result: Mapping[str, Any]) -> list[str]:
    """What was measured as lines of text, 100 columns at most but for long names."""
    model, told = result["model"], result["environment"]
    mac = model["mac_per_pixel"]
    lines = [
        f"processor: {told['processor']}",
        f"n2sr {told['n2sr']}, kernels {told['kernels']}",
        f"Python {told['Python']}",
        f"model: {_described(result)}; {model['bytes'] / 1e6:.2f} MB"
        + ("" if mac is None else f", {mac:.0f} MAC a pixel and draw"),
    ]
    for row in result["rows"]:
        lines += ["", *_lines(row)]
    if result["peak_memory_bytes"] is not None:
        lines += ["", f"peak memory of all: {result['peak_memory_bytes'] / 1e6:.0f} MB"]
    return lines


def _lines(row: Mapping[str, Any]) -> list[str]:
    columns = {**row["stages_ms"], "in all": row["total_ms"]}
    speed = f"{row['frames_per_s']:.1f} frames/s"
    if row["frames_per_s_in_flight"] is not None:
        speed += f", {row['frames_per_s_in_flight']:.1f} with {N_IN_FLIGHT} in flight"
    if row["own_share"] is not None:
        speed += f"; {row['own_share']:.1%} of the time beside infer"
    mac = "" if row["mac_per_pixel"] is None else f"{row['mac_per_pixel']:.0f} MAC a pixel, "
    return [
        f"{row['backend']}: {_what(row)}, {counted(row['frames'], 'frame')}",
        "    ms " + "".join(f"{name:>13}" for name in columns),
        *(
            f"    p{p}" + "".join(f"{times[f'p{p}']:13.2f}" for times in columns.values())
            for p in PERCENTILES
        ),
        f"    {speed}",
        f"    {mac}{row['bytes_in']} bytes in, {row['bytes_out']} out",
    ]


def _what(row: Mapping[str, Any]) -> str:
    return f"{' x '.join(map(str, row['size']))} {row['dtype']}, M = {row['n_samples']}"


def _described(result: Mapping[str, Any]) -> str:
    model = result["model"]
    return f"{model['preset']}, {model['precision']}, weights {model['weights_sha256'][:12]}"


def comparison(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """How many times as long each row of `after` takes as its like in `before`.

    Raises
    ------
    SettingError
        When they are no results of `measure`, were taken on different machines, or have no row
        in common.
    """
    for result in (before, after):
        if not isinstance(result, dict) or result.get("n2sr_bench") != FORMAT_VERSION:
            raise SettingError(
                f"this is no result of n2sr bench, format {FORMAT_VERSION}; make one with: "
                "n2sr bench MODEL --json FILE"
            )
    first, second = (result["environment"]["processor"] for result in (before, after))
    if first != second:
        raise SettingError(
            f"the first was taken on {first}, the second on {second}; times of different machines "
            "cannot be compared"
        )
    known = {tuple(map(str, (row[key] for key in _SAME))): row for row in before["rows"]}
    lines = [f"before: {_described(before)}", f"after: {_described(after)}"]
    for row in after["rows"]:
        earlier = known.get(tuple(map(str, (row[key] for key in _SAME))))
        if earlier is None:
            continue
        ratios = ", ".join(
            f"p{p} {row['total_ms'][f'p{p}'] / earlier['total_ms'][f'p{p}']:.2f} times"
            for p in PERCENTILES
        )
        lines.append(f"{row['backend']}, {_what(row)}: {ratios} as long")
    if len(lines) == 2:
        there = [", ".join(str(row[key]) for key in _SAME) for row in before["rows"]]
        here = [", ".join(str(row[key]) for key in _SAME) for row in after["rows"]]
        raise SettingError(
            "nothing to compare: rows must agree in backend, size, draws and type, but the first "
            f"file has {'; '.join(there)}, the second {'; '.join(here)}"
        )
    return lines
