# The whole developer interface; CI uses the same commands.
#   make demo    set up, and denoise a real STEM frame
#   make test    set up, and run all tests
#   make lint    style, types and the direction of imports
#   make bench   speed and quality, as printed in README and docs (hours on two cores)
#   make sanitize  the kernels under the address and undefined-behaviour sanitizers
#   make clean   remove everything these made

PYTHON ?= python3
BIN := .venv/bin
KERNELS := $(wildcard csrc/*) setup.py
# Here a build without the compiled kernels is an error; for users it is a slower n2sr.
export N2SR_REQUIRE_KERNELS = 1

.PHONY: setup demo test lint bench bench-kernels bench-latency bench-noise bench-quality bench-optimisers
.PHONY: bench-coverage bench-formats bench-hard bench-live bench-trust
.PHONY: setup-careamics setup-peers starting-weights sanitize clean

setup: .venv/.installed

# The build tools come from constraints.txt too; the environment is rebuilt when its inputs change.
.venv/.installed: pyproject.toml constraints.txt $(KERNELS)
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("n2sr needs Python 3.11 or newer; name one with: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools Cython
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/python examples/demo.py demo-out

# Whose absence fails tests instead of skipping them: the libraries that `make setup` installs, among
# them TensorRT for RTX. With a CUDA compiler: make test REQUIRE="extras nvcc"; on a GPU's machine gpu too.
REQUIRE ?= extras
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(addprefix --require=,$(REQUIRE))

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: bench-kernels bench-latency bench-noise bench-trust bench-hard bench-quality bench-optimisers bench-live

bench-kernels: setup
	$(BIN)/python benchmarks/kernels.py

bench-latency: .venv/.bench
	$(BIN)/python -m benchmarks.latency --size 512 512 --size 1024 1024
	$(BIN)/python -m benchmarks.overlap

bench-quality: .venv/.bench setup-careamics
	$(BIN)/python -m benchmarks.quality --seeds 0 1 2
	$(BIN)/python -m benchmarks.report

bench-noise: .venv/.bench
	$(BIN)/python -m benchmarks.noise
	$(BIN)/python -m benchmarks.patterns
	$(BIN)/python -m benchmarks.patterns --weak --steps 600

.venv/.bench: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[bench]'
	touch $@

# Noise2Void's implementation, compared with in bench-quality. torch's own dependencies depend on the platform.
setup-careamics: .venv-careamics/.installed

.venv-careamics/.installed: benchmarks/careamics.txt
	test -x .venv-careamics/bin/python || $(PYTHON) -m venv .venv-careamics
	.venv-careamics/bin/python -m pip install --quiet --disable-pip-version-check -c $< torch torchvision
	.venv-careamics/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	touch $@

bench-live: setup setup-peers
	$(BIN)/python -m benchmarks.live

# Other people's senders, in an environment of their own; n2sr is in it to run Micro-Manager, whose
# dependencies contradict constraints.txt.
PEERS := pvapy==5.6.0 libertem-dectris==0.3.2 pymmcore-plus==0.18.1 mm-test-adapters==75.20261014.post1
setup-peers: .venv-peers/.installed

.venv-peers/.installed: Makefile $(KERNELS)
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools Cython
	PYTHONWARNINGS=ignore .venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[live]'
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check $(PEERS)
	touch $@

bench-hard: .venv/.bench
	$(BIN)/python -m benchmarks.hard_frames

# The real files n2sr is measured on lie beside the project.
bench-formats: setup
	$(BIN)/python -m benchmarks.formats ../shared/data --write

bench-trust: .venv/.bench
	$(BIN)/python -m benchmarks.trust

# What n2sr_train/weights holds; an hour on two cores.
starting-weights: setup
	$(BIN)/python -m benchmarks.starting_weights

bench-coverage: .venv/.bench
	$(BIN)/python -m benchmarks.coverage

bench-optimisers: setup
	$(BIN)/python benchmarks/optimisers.py

sanitize: setup
	$(BIN)/python -m pytest tests/test_sanitizers.py

clean:
	rm -rf .venv .venv-careamics .venv-peers build dist demo-out *.egg-info n2sr_deploy/_subsample.*.so n2sr_deploy/_subsample.*.pyd n2sr_deploy/cuda/lib
	rm -rf .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find n2sr_deploy n2sr_train tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} +
