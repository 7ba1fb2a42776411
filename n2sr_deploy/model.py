"""The exported model: plain ONNX and what must be known to use it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from n2sr_deploy import files
from n2sr_deploy.errors import InputFileError, ModelError, N2SRError, OutputError
from n2sr_deploy.pattern import MAX_STRIDE, SamplingPattern, Shape
from n2sr_deploy.sampling import LIVE_SAMPLES, MAX_CELLS
from n2sr_deploy.words import counted

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FORMAT_VERSION = 1
_PREFIX = "n2sr."
_LARGEST = MAX_CELLS * MAX_STRIDE  # rows or columns of a frame


@dataclass(frozen=True, kw_only=True)
class ModelMetadata:
    """What stands in an exported model's ``metadata_props``, each key with the prefix ``n2sr.``."""

    pattern: SamplingPattern
    """How frames are sub-sampled for this network."""
    pad_multiple: Shape
    """Rows and columns of a frame are mirrored up to multiples of these, in pixels."""
    receptive_radius: Shape
    """How far, in pixels of the frame, an output may depend on its input; tiles overlap by it."""
    bytes_per_pixel: int
    """About how much memory inference takes for each pixel of a frame and draw."""
    n_samples: int
    """M, the number of draws unless the user says otherwise; of live frames `n_live_samples`."""
    preset: str
    """The preset the network was trained with."""
    precision: str
    """``fp32`` or ``fp16``: the arithmetic inside; input and output are float32."""
    weights_sha256: str
    """Of the trained weights before any conversion."""
    n2sr_version: str
    """The version that exported it."""
    pixel_size: tuple[float, float] | None = None
    """Of the frame it was trained on, in `unit`."""
    unit: str | None = None
    frame_shape: Shape | None = None
    """(H, W) of the frame it was trained on: frames to come are likely to have it, so what takes a
    shape's time is done for that."""
    n_orientations: int = 4
    """In how many ways the draws are laid before the network: 4, mirrored and turned by half; 8,
    transposed too, every second group of draws."""
    mac_per_pixel: float | None = None
    """Multiply-accumulates of the network for each pixel of the frame and draw."""
    noise: Mapping[str, Any] | None = None
    """What was measured of the training frame's noise, see `n2sr_deploy.noise.Noise`."""
    steps: int | None = None
    """That the training took; None, as the next two, of a model exported before they were noted."""
    kept_step: int | None = None
    """The step whose weights were kept."""
    validation_error: float | None = None
    """Of these weights, of an ensemble's last member: mean squared error in units of the frame's
    variance."""
    graph_sha256: str | None = None
    """Of the network in the file, which must be the one exported; None of a model from before."""

    def __post_init__(self) -> None:
        """Refuse numbers that no network has, with ValueError."""
        strides = self.pattern.stride
        for multiple, radius, stride in zip(
            self.pad_multiple, self.receptive_radius, strides, strict=True
        ):
            if multiple < 1 or multiple % stride or radius < 0:
                raise ValueError(f"pad_multiple {multiple} or receptive_radius {radius}")
        if self.frame_shape is not None and not all(1 <= n <= _LARGEST for n in self.frame_shape):
            raise ValueError(f"frame_shape {self.frame_shape}")
        if self.pixel_size is not None and not all(0 < n < math.inf for n in self.pixel_size):
            raise ValueError(f"pixel_size {self.pixel_size}")
        square = self.pad_multiple[0] == self.pad_multiple[1]
        if self.n_orientations not in ((4, 8) if square else (4,)):
            raise ValueError(f"n_orientations {self.n_orientations!r}")
        at_least = {"n_samples": 1, "bytes_per_pixel": 1}
        if self.steps is not None:
            at_least |= {"steps": 1, "kept_step": 0}
        for name, least in at_least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} {value!r}")

    @property
    def n_live_samples(self) -> int:
        """M for live frames unless the user says otherwise: at most `LIVE_SAMPLES`."""
        return min(self.n_samples, LIVE_SAMPLES)

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return {
            "format_version": FORMAT_VERSION,
            "pattern": self.pattern.name,
            "stride": self.pattern.stride,
            "pad_multiple": self.pad_multiple,
            "receptive_radius": self.receptive_radius,
            "bytes_per_pixel": self.bytes_per_pixel,
            "n_samples": self.n_samples,
            "preset": self.preset,
            "precision": self.precision,
            "weights_sha256": self.weights_sha256,
            "n2sr_version": self.n2sr_version,
            "pixel_size": self.pixel_size,
            "unit": self.unit,
            "frame_shape": self.frame_shape,
            "n_orientations": self.n_orientations,
            "mac_per_pixel": self.mac_per_pixel,
            "noise": self.noise,
            "steps": self.steps,
            "kept_step": self.kept_step,
            "validation_error": self.validation_error,
            "graph_sha256": self.graph_sha256,
        }

    def to_props(self) -> dict[str, str]:
        """As the strings that ONNX keeps."""
        return {_PREFIX + key: json.dumps(value) for key, value in self.to_dict().items()}

    @classmethod
    def from_props(cls, props: Mapping[str, str], origin: str) -> ModelMetadata:
        """From the strings that ONNX keeps.

        Raises
        ------
        ModelError
            When they are missing, of another format version or not what they should be; the
            message begins with `origin`.
        """
        if _PREFIX + "format_version" not in props:
            raise ModelError(
                f"{origin} is an ONNX model without n2sr's metadata; "
                "use one written by: n2sr export CHECKPOINT -o MODEL.onnx"
            )
        try:
            values = {
                key.removeprefix(_PREFIX): json.loads(text)
                for key, text in props.items()
                if key.startswith(_PREFIX)
            }
            version = values.pop("format_version")
            if version != FORMAT_VERSION:
                raise ModelError(
                    f"{origin} has model format {version}, but this n2sr reads {FORMAT_VERSION}; "
                    "export its checkpoint again with this version"
                )
            values["pattern"] = _pattern(values["pattern"], _shape(values.pop("stride")))
            for key in ("pad_multiple", "receptive_radius"):
                values[key] = _shape(values[key])
            if values.get("frame_shape") is not None:
                values["frame_shape"] = _shape(values["frame_shape"])
            if values["pixel_size"] is not None:
                height, width = map(float, values["pixel_size"])
                values["pixel_size"] = height, width
            if values.get("validation_error") is not None:
                values["validation_error"] = float(values["validation_error"])
            unknown = values.keys() - {field.name for field in fields(cls)}
            if unknown:  # it may matter
                raise ModelError(
                    f"{origin} was exported by a later n2sr: this one does not know what "
                    f"{', '.join(sorted(unknown))} means; update n2sr here, or export its "
                    "checkpoint again with this version"
                )
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(
                f"{origin} has damaged metadata ({error}); export its checkpoint again"
            ) from error

    def padded(self, shape: Shape) -> Shape:
        """The shape of a frame mirrored up to the network's multiple."""
        rows, columns = self.pad_multiple
        return -(-shape[0] // rows) * rows, -(-shape[1] // columns) * columns


@dataclass(frozen=True, kw_only=True)
class ExportedModel:
    """A network ready to run anywhere, and its metadata.

    The graph maps ``subsampled`` (M, 1, H / stride_y, W / stride_x) to ``denoised`` (M, 1, H, W),
    float32 both, for any M and any H and W that are multiples of `ModelMetadata.pad_multiple`.
    Values are standardised; the graph knows nothing of draws, orientations or randomness.
    """

    onnx: bytes = field(repr=False)  # a notebook would print megabytes
    """The ONNX file."""
    metadata: ModelMetadata
    """What the file says of itself."""

    @classmethod
    def open(cls, path: str | Path) -> ExportedModel:
        """Read a model and check that it is one n2sr exported.

        Raises
        ------
        InputFileError
            When there is no readable file.
        ModelError
            When it is no exported model, damaged, or of another format version, or ONNX Runtime is
            broken.
        """
        path = files.path_of(path, InputFileError)
        files.check_input(path)
        if is_checkpoint(path):
            raise ModelError(
                f"{path} is a checkpoint, not an exported model; "
                f"export it first: n2sr export {path} -o {path.with_suffix('.onnx').name}"
            )
        onnx = path.read_bytes()
        from n2sr_deploy.backends import ort
        from n2sr_deploy.backends.onnx_weights import graph_sha256

        try:
            props = ort.metadata_props(onnx)
        except N2SRError as error:
            raise ModelError(
                f"{path} is not an ONNX model: {error}; give one that n2sr export wrote; if it is "
                "one, it was cut off or damaged: copy it again, or export it again"
            ) from error
        metadata = ModelMetadata.from_props(props, str(path))
        if metadata.graph_sha256 not in (None, graph_sha256(onnx)):
            raise ModelError(
                f"{path} is damaged: its network is not the one that was exported; copy it again, "
                "or export its checkpoint again"
            )
        return cls(onnx=onnx, metadata=metadata)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the ONNX file, whole or not at all.

        What a killed process left of it is removed.

        Raises
        ------
        OutputError
            When it exists and may not be replaced, or the system refuses the writing.
        """
        path = files.path_of(path, OutputError)
        files.remove_leftovers(path)
        with files.replacing(path, overwrite=overwrite) as temporary:
            temporary.write_bytes(self.onnx)

    def describe(self) -> str:
        """What it is, in words."""
        meta = self.metadata
        trained_on = "pixel size unknown"
        if meta.pixel_size is not None:
            height, width = meta.pixel_size
            trained_on = f"pixel {height:.4g} x {width:.4g} {meta.unit}"
        if meta.frame_shape is not None:
            trained_on = f"{meta.frame_shape[0]} x {meta.frame_shape[1]} pixels, {trained_on}"
        steps = "" if meta.steps is None else f", in {counted(meta.steps, 'step')}"
        kept = "" if meta.kept_step is None else f", kept from step {meta.kept_step}"
        if meta.validation_error is not None:
            kept += f", validation error {meta.validation_error:.4f}"
        return (
            f"exported model, preset {meta.preset}, {meta.precision}, pattern {meta.pattern}, "
            f"M = {meta.n_samples} (live frames: {meta.n_live_samples}), for frames of at least "
            f"{meta.pad_multiple[0]} x {meta.pad_multiple[1]} pixels; "
            f"trained on a frame of {trained_on}{steps}{kept}; weights {meta.weights_sha256[:12]}, "
            f"{len(self.onnx) / 1e6:.2g} MB, exported by n2sr {meta.n2sr_version}"
        )


def is_checkpoint(path: Path) -> bool:
    """Tell from its first bytes whether a file is .safetensors: a length, then JSON."""
    if not path.is_file():
        return False
    with path.open("rb") as opened:
        head = opened.read(9)
    return head[6:] == b"\0\0{"


def _pattern(name: str, stride: Shape) -> SamplingPattern:
    pattern = SamplingPattern.named(name, stride)
    if pattern.stride != stride:
        raise ValueError(f"{stride} is no stride of pattern {name}")
    return pattern


def _shape(values: Any) -> Shape:
    rows, columns = values
    if not (isinstance(rows, int) and isinstance(columns, int)):
        raise ValueError(f"{values} is no pair of integers")
    return rows, columns
