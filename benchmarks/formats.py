"""What n2sr reads of real files, and whether they come back calibrated.

    python -m benchmarks.formats ../shared/data [--write]

Every frame file of the folder is opened, its first frame denoised by a small model, and the result
written in every format n2sr writes and read back by RosettaSciIO: pixels, pixel size and axes
must be those of the input. `--write` puts the table into docs/formats.md.
"""

from __future__ import annotations

import argparse
import logging
import tarfile
import tempfile
import warnings
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from n2sr_deploy import Denoiser, Frame, N2SRError, open_frames, write_frame
from n2sr_deploy.formats import FORMATS, is_frame_file
from n2sr_deploy.formats.units import nanometres
from n2sr_deploy.learning import LearnOptions
from n2sr_deploy.phantom import clean_phantom, noisy_draw
from n2sr_train import export_model, learn_checkpoint

if TYPE_CHECKING:
    from n2sr_deploy.formats import FrameFile
    from n2sr_deploy.model import ExportedModel

PAGE = Path(__file__).parents[1] / "docs" / "formats.md"
BEGIN, END = "<!-- made by benchmarks/formats.py -->", "<!-- until here -->"
READERS = {".tif": "tiff", ".mrc": "mrc", ".emd": "emd", ".hspy": "hspy", ".zspy": "zspy"}
HEAD = (
    "| file | frames | type | pixel | counts of frame 0 | microscope | axes of the frames | "
    "comes back |\n|---|---|---|---|---|---|---|---|\n"
)


def small_model() -> ExportedModel:
    """One that denoises anything a little."""
    pixels = noisy_draw(clean_phantom((128, 128)), gain=0.05, read_noise=0.02)
    options = LearnOptions(preset="fast", steps=2, pattern="cell")
    return export_model(learn_checkpoint(Frame(pixels=pixels), options))


def frame_files(folder: Path, unpacked: Path) -> list[Path]:
    """All under the folder, archives unpacked."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffixes[-2:] == [".tar", ".gz"]:
            with tarfile.open(path) as archive:
                archive.extractall(unpacked, filter="data")
            found += sorted(unpacked.iterdir())
        elif path.is_file() and path.suffix not in (".md", ".hdr") and is_frame_file(path):
            found.append(path)
    return found


def row(path: Path, model: ExportedModel, folder: Path) -> str:
    """One file's line of the table."""
    with open_frames(path) as opened:
        frame = opened.read(0)
        size = f"{len(opened)} x " if len(opened) > 1 else ""
        axes = [
            f"{axis.name} {axis.size}: from {axis.offset:.4g} by {axis.scale:.4g} {axis.unit or ''}"
            for axis in opened.axes
        ]
        back = comes_back(opened, frame, model, folder)
    pixel = "unknown"
    if frame.pixel_size is not None:
        height, width = frame.pixel_size
        sides = f"{width:.4g}" if height == width else f"{height:.4g} x {width:.4g}"
        pixel = f"{sides} {frame.unit}"
    voltage = frame.acquisition.get("beam_energy_kev")
    microscope = [
        f"{voltage:g} kV" if voltage else "",
        str(frame.acquisition.get("microscope", "")),
    ]
    cells = [
        path.name,
        f"{size}{frame.shape[0]} x {frame.shape[1]}",
        str(opened.dtype.newbyteorder("=")),
        pixel,
        f"{frame.pixels.min():.6g} to {frame.pixels.max():.6g}, mean {frame.pixels.mean():.5g}",
        " ".join(filter(None, microscope)),
        "; ".join(axes),
        back,
    ]
    return "| " + " | ".join(cells) + " |"


def comes_back(opened: FrameFile, frame: Frame, model: ExportedModel, folder: Path) -> str:
    """Of which formats RosettaSciIO reads the same pixels and calibration, and of which not."""
    told = ""
    try:
        with Denoiser(model) as denoiser:
            result = frame.with_pixels(denoiser.denoise(frame).mean, "denoised")
    except N2SRError as error:
        result, told = frame, f"not denoised ({str(error).split(':')[0]}), as it is: "
    whole, wrong = [], []
    for known in FORMATS:
        for suffix in known.extensions if known.write else ():
            if suffix not in READERS:
                continue
            path = folder / f"{opened.path.stem}{suffix}"
            write_frame(path, result)
            (whole if same(path, result, READERS[suffix]) else wrong).append(suffix)
    told += ", ".join(whole)
    return f"{told}; NOT {', '.join(wrong)}" if wrong else told


def same(path: Path, frame: Frame, reader: str) -> bool:
    """Whether RosettaSciIO reads the frame's pixels and pixel size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (found,) = import_module(f"rsciio.{reader}").file_reader(str(path))
    if not np.array_equal(np.asarray(found["data"]), frame.pixels):
        return False
    if frame.pixel_size is None:
        return True
    axes = found["axes"]
    return all(
        _same_scale(axis, side, frame.unit)
        for axis, side in zip(axes, frame.pixel_size, strict=True)
    )


def _same_scale(axis: dict[str, Any], side: float, unit: str | None) -> bool:
    factors = nanometres(str(axis["units"])), nanometres(unit)
    if factors[0] is None or factors[1] is None:
        return bool(np.isclose(axis["scale"], side, rtol=1e-5))
    return bool(np.isclose(axis["scale"] * factors[0], side * factors[1], rtol=1e-5))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", action="store_true", help="put it into docs/formats.md")
    arguments = parser.parse_args()
    logging.getLogger("tifffile").addHandler(logging.NullHandler())
    model = small_model()
    with tempfile.TemporaryDirectory() as scratch:
        unpacked, written = Path(scratch) / "unpacked", Path(scratch) / "written"
        unpacked.mkdir()
        written.mkdir()
        rows = [row(path, model, written) for path in frame_files(arguments.folder, unpacked)]
    table = HEAD + "\n".join(rows) + "\n"
    print(table)
    if arguments.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        PAGE.write_text(f"{before}{BEGIN}\n{table}{END}{after}")


if __name__ == "__main__":
    main()
