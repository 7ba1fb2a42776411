"""Builds the compiled kernels; everything else about the package stands in pyproject.toml.

N2SR_OPENMP = auto (default: use OpenMP if the compiler has it) | off | require.
N2SR_CUDA = auto (default: build the CUDA kernels if there is nvcc) | off | require.
N2SR_REQUIRE_KERNELS = 1 makes a failed build an error; otherwise n2sr installs without the
kernels and runs its NumPy reference.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError, PlatformError

COMPILE_ARGS = {
    "msvc": ["/O2", "/std:c11", "/fp:precise"],
    "unix": ["-O3", "-std=c11", "-ffp-contract=off", "-fno-math-errno"],
}
OPENMP_ARGS = {  # compile and link arguments, the first that works
    "msvc": [(["/openmp"], [])],
    # On macOS a second OpenMP beside PyTorch's own would end the process: one thread there.
    "unix": [] if sys.platform == "darwin" else [(["-fopenmp"], ["-fopenmp"])],
}
CUDA_LIBRARY = "n2sr_cuda.dll" if sys.platform == "win32" else "libn2sr_cuda.so"
CUDA_SOURCES = [
    Path("csrc", f"{name}.cu")
    for name in ("draw", "merge", "pool", "statistics", "convolve", "runtime")
]
CUDA_TARGETS = (75, 80, 86, 89, 90, 100, 120)  # Turing to Blackwell; later ones from the last's PTX
CUDA_ARGS = [
    *("-O3", "-std=c++17", "-fmad=false", "-shared", "-cudart", "static", "--threads", "0"),
    *("-Xfatbin", "-compress-all"),
    *(f"-gencode=arch=compute_{target},code=sm_{target}" for target in CUDA_TARGETS),
    f"-gencode=arch=compute_{CUDA_TARGETS[-1]},code=compute_{CUDA_TARGETS[-1]}",
    *([] if sys.platform == "win32" else ["-Xcompiler", "-fPIC,-fvisibility=hidden"]),
]


def wish(name: str) -> str:
    """What an environment variable asks for: auto, off or require."""
    wished = os.environ.get(name, "auto")
    if wished not in ("auto", "off", "require"):
        raise ValueError(f"{name} is {wished!r}, but must be auto, off or require")
    return wished


class BuildKernels(build_ext):
    """Adds the arguments this compiler understands."""

    def build_extensions(self) -> None:
        kind = self.compiler.compiler_type if self.compiler.compiler_type == "msvc" else "unix"
        openmp_compile, openmp_link = self.openmp_args(kind)
        for extension in self.extensions:
            extension.extra_compile_args += COMPILE_ARGS[kind] + openmp_compile
            extension.extra_link_args += openmp_link
        super().build_extensions()
        self.build_cuda()

    def build_cuda(self) -> None:
        """The CUDA kernels, a library of their own; nvcc compiles and links it."""
        wished, nvcc = wish("N2SR_CUDA"), shutil.which("nvcc")
        is_in_place = self.inplace or getattr(self, "editable_mode", False)
        folder = Path("." if is_in_place else self.build_lib, "n2sr_deploy", "cuda", "lib")
        library = folder / CUDA_LIBRARY
        if wished == "off" or (wished == "auto" and nvcc is None):
            return
        if nvcc is None:
            raise CompileError("N2SR_CUDA=require, but there is no nvcc on the PATH")
        inputs = [*CUDA_SOURCES, *Path("csrc").glob("*.h"), Path(__file__)]
        newest = max(path.stat().st_mtime for path in inputs)
        if library.exists() and library.stat().st_mtime > newest:
            return
        folder.mkdir(parents=True, exist_ok=True)
        command = [nvcc, *CUDA_ARGS, "-Icsrc", *map(str, CUDA_SOURCES), "-o", str(library)]
        if subprocess.run(command, check=False).returncode == 0:
            return
        library.unlink(missing_ok=True)
        if wished == "require":
            raise CompileError("N2SR_CUDA=require, but nvcc cannot build csrc/*.cu")
        logging.getLogger(__name__).warning("nvcc fails; building without the CUDA kernels")

    def openmp_args(self, kind: str) -> tuple[list[str], list[str]]:
        wished = wish("N2SR_OPENMP")
        for arguments in OPENMP_ARGS[kind] if wished != "off" else []:
            if self.links(*arguments):
                return arguments
        if wished == "require":
            raise CompileError("N2SR_OPENMP=require, but this compiler builds no OpenMP program")
        logging.getLogger(__name__).warning("building the kernels without OpenMP: one thread")
        return [], []

    def links(self, compile_args: list[str], link_args: list[str]) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(
                "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"
            )
            try:
                objects = self.compiler.compile(
                    [str(source)], output_dir=folder, extra_postargs=compile_args
                )
                self.compiler.link_executable(
                    objects, str(Path(folder, "probe")), extra_postargs=link_args
                )
            except (CompileError, LinkError, PlatformError):
                return False
        return True


kernels = Extension(
    "n2sr_deploy._subsample",
    ["csrc/_subsample.pyx", "csrc/subsample.c", "csrc/sums.c"],
    include_dirs=["csrc"],
    depends=[str(path) for path in sorted(Path("csrc").glob("*.h"))],
    optional=os.environ.get("N2SR_REQUIRE_KERNELS") != "1",
)

setup(
    ext_modules=cythonize([kernels], build_dir="build"),
    cmdclass={"build_ext": BuildKernels},
)
