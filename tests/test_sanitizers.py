"""The C kernels under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.conftest import REPOSITORY

COMPILER = shutil.which(os.environ.get("CC", "cc"))


@pytest.mark.skipif(COMPILER is None, reason="no C compiler here")
@pytest.mark.parametrize("openmp", [False, True])
@pytest.mark.parametrize("clones", [False, True])
def test_kernels_run_clean(tmp_path, openmp, clones):
    program = tmp_path / "kernels"
    command = [
        COMPILER,
        "-std=c11",
        "-g",
        "-O2",
        "-ffp-contract=off",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        *(["-fopenmp"] if openmp else []),
        *([] if clones else ["-DN2SR_NO_CLONES"]),
        f"-I{REPOSITORY / 'csrc'}",
        str(REPOSITORY / "tests" / "kernels_sanitized.c"),
        *(str(REPOSITORY / "csrc" / name) for name in ("subsample.c", "sums.c")),
        "-lm",
        "-o",
        str(program),
    ]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if "cannot find -lasan" in built.stderr or "unsupported option" in built.stderr:
        pytest.skip("this compiler has no sanitizers, or no OpenMP")
    assert built.returncode == 0, built.stderr
    options = {"ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "3"}
    ran = subprocess.run(
        [program], capture_output=True, text=True, env={**os.environ, **options}, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("clean: ")
