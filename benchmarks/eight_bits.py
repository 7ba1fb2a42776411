"""Would eight bits be worth a second model? Time of the network, and PSNR, against what n2sr runs.

    python -m benchmarks.eight_bits [--rounds 30]

Preset fast, learned from phantoms of little and of strong noise and, where the file is at hand,
from PtCeO2_5. Its exported model is quantised by ONNX Runtime (weights of each channel, activations
by the least and the greatest of some draws of the frame that it learned from), whole or but for the
first and the last convolution. Frames of all ways alternate, M = 4.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnxruntime import quantization

from benchmarks.cases import cases, gaussian
from benchmarks.results import begin_as_deployed, keep
from n2sr_deploy import Denoiser
from n2sr_deploy.backends.openvino import OpenVINOBackend
from n2sr_deploy.backends.ort import OnnxRuntimeBackend
from n2sr_deploy.errors import ModelError
from n2sr_deploy.learning import LearnOptions
from n2sr_deploy.phantom import clean_phantom
from n2sr_deploy.sampling import draw
from n2sr_train import export_model, learn_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.cases import Simulated
    from n2sr_deploy import Frame
    from n2sr_deploy.model import ExportedModel

N_SAMPLES = 4
N_CALIBRATION = 8  # draws


def frames() -> Iterator[Simulated]:
    """Of known truth."""
    clean = clean_phantom(spacing=12.0)
    yield gaussian("phantom", clean, 0.002, 0.005)
    yield gaussian("phantom", clean, 0.05, 0.02)
    yield from (case for case in cases() if case.name == "PtCeO2_5, gain 0.05")


class Draws(quantization.CalibrationDataReader):
    """Of the frame that the model learned from, one at a time."""

    def __init__(self, model: ExportedModel, frame: Frame) -> None:
        mean, scale = frame.mean_and_std()
        drawn = draw(
            frame.pixels, model.metadata.pattern, N_CALIBRATION, seed=1, mean=mean, scale=scale
        )
        name = onnx.load_from_string(model.onnx).graph.input[0].name
        self._left = iter([{name: one[None, None]} for one in drawn])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """None at the end."""
        return next(self._left, None)


def quantised(model: ExportedModel, frame: Frame, *, ends: bool) -> bytes:
    """The model in eight bits, its first and last convolution too or not."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("exported.onnx", "folded.onnx", "int8.onnx")]
        paths[0].write_bytes(model.onnx)
        quantization.quant_pre_process(paths[0], paths[1], skip_symbolic_shape=True)
        nodes = onnx.load(paths[1]).graph.node
        convolutions = [node.name for node in nodes if node.op_type == "Conv"]
        quantization.quantize_static(
            paths[1],
            paths[2],
            Draws(model, frame),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            nodes_to_exclude=[] if ends else [convolutions[0], convolutions[-1]],
        )
        return paths[2].read_bytes()


def measured(case: Simulated, rounds: int) -> list[dict[str, Any]]:
    """A row for each way to run the network."""
    model = export_model(learn_checkpoint(case.noisy, LearnOptions(preset="fast")))
    own, whole, inner = (
        model.onnx,
        quantised(model, case.noisy, ends=True),
        quantised(model, case.noisy, ends=False),
    )
    ways = {
        "OpenVINO": OpenVINOBackend(own),
        "OpenVINO, float32": OpenVINOBackend(own, float32=True),
        "OpenVINO, int8": OpenVINOBackend(whole),
        "OpenVINO, int8, the rest float32": OpenVINOBackend(whole, float32=True),
        "OpenVINO, int8 but for first and last": OpenVINOBackend(inner),
        "ONNX Runtime": OnnxRuntimeBackend(own),
        "ONNX Runtime, int8": OnnxRuntimeBackend(whole),
    }
    denoisers = {way: Denoiser(model, backend=backend) for way, backend in ways.items()}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    psnr_db = {}
    for n in range(rounds + 1):
        for way in list(denoisers):
            try:
                done = denoisers[way].denoise(case.noisy, N_SAMPLES, frame_index=n)
            except ModelError as error:  # OpenVINO has not all on all processors
                denoisers.pop(way).close()
                print(f"{case.name}: {way}: {error}", flush=True)
                continue
            if n == 0:  # the first compiles
                psnr_db[way] = case.scores(done.mean)["psnr_db"]
            else:
                seconds[way].append(done.timings["infer"])
    rows = []
    for way, denoiser in denoisers.items():
        denoiser.close()
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
