"""Builds the compiled kernels; everything else about the package stands in pyproject.toml.

N2SR_OPENMP = auto (default: use OpenMP if the compiler has it) | off | require.
N2SR_REQUIRE_KERNELS = 1 makes a failed build an error; otherwise n2sr installs without the
kernels and runs its NumPy reference.
"""

from __future__ import annotations

import logging
import os
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


class BuildKernels(build_ext):
    """Adds the arguments this compiler understands."""

    def build_extensions(self) -> None:
        kind = self.compiler.compiler_type if self.compiler.compiler_type == "msvc" else "unix"
        openmp_compile, openmp_link = self.openmp_args(kind)
        for extension in self.extensions:
            extension.extra_compile_args += COMPILE_ARGS[kind] + openmp_compile
            extension.extra_link_args += openmp_link
        super().build_extensions()

    def openmp_args(self, kind: str) -> tuple[list[str], list[str]]:
        wish = os.environ.get("N2SR_OPENMP", "auto")
        if wish not in ("auto", "off", "require"):
            raise ValueError(f"N2SR_OPENMP is {wish!r}, but must be auto, off or require")
        for arguments in OPENMP_ARGS[kind] if wish != "off" else []:
            if self.links(*arguments):
                return arguments
        if wish == "require":
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
    ["csrc/_subsample.pyx", "csrc/subsample.c"],
    include_dirs=["csrc"],
    depends=[str(path) for path in sorted(Path("csrc").glob("*.h"))],
    optional=os.environ.get("N2SR_REQUIRE_KERNELS") != "1",
)

setup(
    ext_modules=cythonize([kernels], build_dir="build"),
    cmdclass={"build_ext": BuildKernels},
)
