"""How much memory and time a frame of 16384 x 16384 pixels takes, from file to file.

    python -m benchmarks.large_frame [--side 16384]

By `n2sr denoise` with a model (preset fast, 4 draws), in a process of its own: uint16 .npy in,
float32 .tif out, hot pixels and offsets mended. The error left in a block in the middle is told
too.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.results import keep
from n2sr_deploy import Frame, read_frame
from n2sr_deploy.learning import LearnOptions
from n2sr_deploy.phantom import clean_phantom
from n2sr_train import export_model, learn_checkpoint

BLOCK = 512


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=16384)
    side = parser.parse_args().side
    rng = np.random.default_rng(0)
    clean = clean_phantom((BLOCK, BLOCK)) * 40
    options = LearnOptions(preset="fast", steps=100)
    model = export_model(
        learn_checkpoint(Frame(pixels=rng.poisson(clean).astype(np.uint16)), options)
    )
    with tempfile.TemporaryDirectory() as folder:
        noisy, onnx, out = (Path(folder) / name for name in ("noisy.npy", "m.onnx", "out.tif"))
        model.save(onnx)
        frame = np.lib.format.open_memmap(noisy, "w+", np.uint16, (side, side))
        for top in range(0, side, BLOCK):
            for left in range(0, side, BLOCK):
                frame[top : top + BLOCK, left : left + BLOCK] = rng.poisson(clean)
        frame.flush()
        command = ["denoise", noisy, "-m", onnx, "-o", out, "-M", "4", "--backend", "ort"]
        program = "import sys; from n2sr_deploy.cli import main; main(sys.argv[1:])"
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", program, *command], check=True)
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        figures = {
            "side": side,
            "seconds": seconds,
            "peak_memory_bytes": peak,
            "peak_memory_per_pixel": peak / side**2,
            "error_left": error_left(frame, read_frame(out).pixels, clean),
        }
    print(figures)
    print(keep("large_frame", figures))


def error_left(noisy: np.ndarray, denoised: np.ndarray, clean: np.ndarray) -> float:
    """Of the result, over the noise's, in a block in the middle."""
    place = len(noisy) // 2 // BLOCK * BLOCK
    block = slice(place, place + BLOCK), slice(place, place + BLOCK)
    noise = np.mean((noisy[block] - clean) ** 2)
    return float(np.mean((denoised[block] - clean) ** 2) / noise)


if __name__ == "__main__":
    main()
