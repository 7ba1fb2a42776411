"""Stands in for TensorRT and TensorRT for RTX."""

from __future__ import annotations

from n2sr_deploy.backends import tensorrt as backend
from tests.fake_device import FakeDevice

SHAPE = (4, 1, 48, 64)  # of the input of an engine whose plan does not tell another


def plan_for(shape):
    """Of an engine for this shape of input."""
    return b"a plan for %d x %d x %d x %d" % shape


def shape_of(plan):
    """What `plan_for` was given."""
    numbers = plan.removeprefix(b"a plan for ").split(b" x ")
    return tuple(map(int, numbers)) if len(numbers) == 4 else SHAPE


class FakeTensorRT:
    """As much of the library as running an engine takes.

    Parameters
    ----------
    network
        What its engines compute; without, nothing.
    """

    __version__ = "11.4.0"
    __name__ = "tensorrt"

    class ILogger:
        ERROR, INTERNAL_ERROR = 1, 0

        def __init__(self):
            pass

    class TensorIOMode:
        INPUT, OUTPUT = "in", "out"

    class DataType:
        FLOAT, HALF = "float32", "float16"

    class ExecutionContextAllocationStrategy:
        USER_MANAGED = "by the user"

    starts = loads = contexts = runs = True
    told = ""  # to the logger, by what fails
    raises = None  # what that raises instead of giving nothing

    def __init__(self, network=None):
        self.network = network

    def install(self, monkeypatch):
        """In the place of the real one, and of the driver."""
        monkeypatch.setattr(backend, "import_library", lambda library: self)
        driver = type("Driver", (), {"version": "580.1"})()
        monkeypatch.setattr(backend, "find_driver", lambda: driver)

    def outcome(self, works, result):
        if not works and self.told:
            self.logger.log(1, self.told)
        if not works and self.raises:
            raise self.raises
        return result if works else None

    def Runtime(self, logger):  # noqa: N802
        self.logger = logger
        return self.outcome(self.starts, self)

    def deserialize_cuda_engine(self, plan):
        return self.outcome(self.loads, FakeEngine(self, shape_of(plan)))


class FakeEngine:
    num_io_tensors = 2
    device_memory_size_v2 = 1000

    def __init__(self, trt, shape=SHAPE):
        self.trt, self.shape, self.addresses, self.ran_on = trt, shape, {}, []

    def get_tensor_name(self, index):
        return ("denoised", "subsampled")[index]

    def get_tensor_mode(self, name):
        return {"subsampled": "in", "denoised": "out"}[name]

    def create_execution_context(self, strategy):
        assert strategy == "by the user"
        return self.trt.outcome(self.trt.contexts, self)

    def set_device_memory(self, address, n_bytes):
        assert n_bytes == 1000
        self.workspace = address

    def get_tensor_shape(self, name):
        n, _, height, width = self.shape
        return {"subsampled": self.shape, "denoised": (n, 1, 2 * height, 2 * width)}[name]

    def get_tensor_dtype(self, name):
        return "float32"

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return address % 256 == 0 or self.trt.runs

    def execute_async_v3(self, stream):
        self.ran_on.append(stream)
        network, at = self.trt.network, self.addresses
        if network is not None:
            network.enqueue(self.shape, stream, at["subsampled"], at["denoised"])
        return bool(self.trt.outcome(self.trt.runs, self))


class FakeRTX(FakeTensorRT):
    """Compiles kernels when a context is made, as TensorRT for RTX does."""

    __name__ = "tensorrt_rtx"
    IRuntimeCache = object
    fits = True

    def __init__(self):
        super().__init__()
        self.given = []  # what caches were filled with

    def deserialize_cuda_engine(self, plan):
        return FakeRTXEngine(self)


class FakeRTXEngine(FakeEngine):
    kernels = None

    def create_runtime_config(self):
        return self

    def create_runtime_cache(self):
        return self

    def set_runtime_cache(self, cache):
        self.cache = cache
        return True

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy

    def create_execution_context(self, how):
        if isinstance(how, str):
            return super().create_execution_context(how)
        how.cache.kernels = b"compiled"
        return super().create_execution_context(how.strategy)

    def deserialize(self, blob):
        self.trt.given.append(blob)
        self.kernels = blob if self.trt.fits else None
        return self.trt.fits

    def serialize(self):
        return self.kernels


class FakeGPU(FakeDevice):
    name, capability, index = "NVIDIA Fake", 89, 0
