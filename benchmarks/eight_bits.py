"""What eight bits gain and cost: time of the network, and PSNR, against float32 and bfloat16.

    python -m benchmarks.eight_bits [--rounds 30]

Preset fast, learned from phantoms of little and of strong noise and, where the file is at hand,
from PtCeO2_5. Its exported model is rounded as `n2sr export --precision int8` does, whatever that
costs. Frames of all ways alternate, M = 4.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.cases import cases, gaussian
from benchmarks.results import begin_as_deployed, keep
from n2sr_deploy import Denoiser
from n2sr_deploy.backends.openvino import OpenVINOBackend
from n2sr_deploy.backends.ort import OnnxRuntimeBackend
from n2sr_deploy.learning import LearnOptions
from n2sr_deploy.phantom import clean_phantom
from n2sr_train import export_model, learn_checkpoint
from n2sr_train.quantising import rounded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.cases import Simulated

N_SAMPLES = 4


def frames() -> Iterator[Simulated]:
    """Of known truth."""
    clean = clean_phantom(spacing=12.0)
    yield gaussian("phantom, gain 0.002", clean, 0.002, 0.005)
    yield gaussian("phantom, gain 0.05", clean, 0.05, 0.02)
    yield from (case for case in cases() if case.name == "PtCeO2_5, gain 0.05")


def measured(case: Simulated, rounds: int) -> list[dict[str, Any]]:
    """A row for each way to run the network."""
    model = export_model(learn_checkpoint(case.noisy, LearnOptions(preset="fast")))
    own, in_int8 = model.onnx, rounded(model, case.noisy).onnx
    ways = {
        "OpenVINO": OpenVINOBackend(own),
        "OpenVINO, float32": OpenVINOBackend(own, float32=True),
        "OpenVINO, int8": OpenVINOBackend(in_int8),
        "OpenVINO, int8 and float32": OpenVINOBackend(in_int8, float32=True),
        "ONNX Runtime": OnnxRuntimeBackend(own),
        "ONNX Runtime, int8": OnnxRuntimeBackend(in_int8),
    }
    denoisers = {way: Denoiser(model, backend=backend) for way, backend in ways.items()}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    psnr_db = {}
    for n in range(rounds + 1):
        for way, denoiser in denoisers.items():
            done = denoiser.denoise(case.noisy, N_SAMPLES, frame_index=n)
            if n == 0:  # the first compiles
                psnr_db[way] = case.scores(done.mean)["psnr_db"]
            else:
                seconds[way].append(done.timings["infer"])
    for denoiser in denoisers.values():
        denoiser.close()
    rows = []
    for way in ways:
        infer_ms = 1e3 * float(np.median(seconds[way]))
        row = {"frame": case.name, "way": way, "infer_ms": infer_ms, "psnr_db": psnr_db[way]}
        rows.append(row)
        print(f"{case.name}: {way}, {infer_ms:.1f} ms, {psnr_db[way]:.2f} dB", flush=True)
    return rows


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    rows = [row for case in frames() for row in measured(case, rounds)]
    print(f"kept in {keep('eight_bits', rows)}")


if __name__ == "__main__":
    begin_as_deployed()
    main()
