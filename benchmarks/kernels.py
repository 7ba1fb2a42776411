"""Draw and merge against a copy of the same bytes, and against the NumPy reference.

    python benchmarks/kernels.py

A 4096 x 4096 uint16 frame, M = 4. A kernel "must move" the bytes it reads plus the bytes it writes;
the copy beside it moves as many in all (half read, half written): a plain memcpy (NumPy's copyto)
on one thread, and the same split over as many threads as the kernel has. Each round times kernel
and copy next to each other; the ratio is the median over the rounds. All buffers are allocated and
touched before.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.results import keep
from n2sr_deploy import reference
from n2sr_deploy.kernels import describe_kernels, kernels
from n2sr_deploy.pattern import SamplingPattern, Window

if TYPE_CHECKING:
    from collections.abc import Callable

SIDE, N_SAMPLES, ROUNDS = 4096, 4, 15


def seconds(work: Callable[[], object]) -> float:
    """How long it takes, once."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def copier(n_bytes: int, n_threads: int) -> Callable[[], None]:
    """A copy that reads and writes n_bytes in all, on n_threads threads."""
    source = np.ones(n_bytes // 2, np.uint8)
    target = np.zeros_like(source)
    if n_threads == 1:
        return lambda: np.copyto(target, source)
    edges = np.linspace(0, source.size, n_threads + 1).astype(int)
    parts = [slice(a, b) for a, b in itertools.pairwise(edges)]

    def copy() -> None:
        threads = [
            threading.Thread(target=np.copyto, args=(target[part], source[part])) for part in parts
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return copy


def measure(
    name: str, n_bytes: int, kernel: Callable[[Any, int], object]
) -> dict[str, float | str | int]:
    """Ratios of the kernel's time to a copy's and of the reference's time to the kernel's."""
    reference_s = seconds(lambda: kernel(reference, 1))
    copies = {n: copier(n_bytes, n) for n in (1, 2)}
    work = {n: (lambda n=n: kernel(kernels(), n)) for n in (1, 2)}
    times: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for n in (1, 2):
            times.setdefault(f"kernel{n}", []).append(seconds(work[n]))
            times.setdefault(f"copy{n}", []).append(seconds(copies[n]))
    median = {key: float(np.median(values)) for key, values in times.items()}
    ratio = {
        key: float(np.median(np.array(times[a]) / np.array(times[b])))
        for key, a, b in (
            ("times_memcpy", "kernel2", "copy1"),
            ("times_parallel_copy", "kernel2", "copy2"),
            ("times_memcpy_one_thread", "kernel1", "copy1"),
        )
    }
    return {
        "kernel": name,
        "bytes": n_bytes,
        **{key: round(value, 3) for key, value in ratio.items()},
        "times_faster_than_numpy": round(reference_s / median["kernel2"], 1),
        "times_faster_than_numpy_one_thread": round(reference_s / median["kernel1"], 1),
    }


def draw_figures(name: str, frame: np.ndarray, pattern: SamplingPattern) -> dict[str, Any]:
    """The draw of M sub-samples."""
    rows, columns = pattern.cells((SIDE, SIDE))
    out = np.zeros((N_SAMPLES, rows, columns), np.float32)
    window = Window(0, 0, rows, columns)

    def kernel(module: Any, n_threads: int) -> None:
        module.draw(frame, pattern, window, 0, 2000.0, 500.0, 1, 0, out, n_threads)

    return measure(name, frame.nbytes + out.nbytes, kernel)


def merge_figures() -> dict[str, Any]:
    """The merge of M outputs into mean and standard deviation."""
    outputs = np.random.default_rng(0).normal(size=(N_SAMPLES, SIDE, SIDE)).astype(np.float32)
    mean, std = np.zeros((2, SIDE, SIDE), np.float32)

    def kernel(module: Any, n_threads: int) -> None:
        module.merge(outputs, 0, 0, 0, 2000.0, 500.0, mean, std, n_threads)

    return measure("merge", outputs.nbytes + mean.nbytes + std.nbytes, kernel)


def main() -> None:
    """Measure, print, keep."""
    frame = np.random.default_rng(0).integers(0, 4000, (SIDE, SIDE), dtype=np.uint16)
    figures = [
        draw_figures("draw, pattern cell", frame, SamplingPattern.named("cell")),
        draw_figures("draw, pattern row", frame, SamplingPattern.named("row")),
        merge_figures(),
    ]
    print(f"kernels: {describe_kernels()}; {SIDE} x {SIDE} uint16, M = {N_SAMPLES}")
    for row in figures:
        print(
            f"{row['kernel']:20} {row['times_memcpy']:5.2f} x memcpy of "
            f"{row['bytes'] / 2e6:.0f} MB (moves the same {row['bytes'] / 1e6:.0f} MB), "
            f"{row['times_parallel_copy']:5.2f} x the copy on two threads, both on one thread "
            f"{row['times_memcpy_one_thread']:.2f} x; "
            f"{row['times_faster_than_numpy']:6.1f} x faster than the NumPy reference "
            f"(one thread: {row['times_faster_than_numpy_one_thread']:.1f} x)"
        )
    print(f"kept in {keep('kernels', figures)}")


if __name__ == "__main__":
    main()
