# Two commands matter: `make demo` and `make test`. Both set everything up first; neither needs another step.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# One thread a test process: xdist already fills the cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: setup demo test check proof kernels bench lint clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Scion needs Python 3.11 or newer; call 'make setup PYTHON=python3.11'."; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "Python's venv module is missing; on Debian: apt-get install python3-venv"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet torch==2.14.1 torchvision==0.29.1
	$(BIN)/python -m pip install --quiet --editable '.[demo,dev]'
	touch $@

demo: setup
	$(BIN)/python -m multimodal demo

test: setup
	$(PYTEST) -n 2 -m "not slow and not gpu"

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

check: lint test

# The slow proofs: real data, real models, many kills. Fetches the demo's kit when it is not there.
proof: setup
	$(BIN)/python -m multimodal.data.kit
	$(BIN)/python -m pytest -m slow --timeout 3600

# Kernels without a GPU: every shape in Triton's interpreter, every configuration compiled and held against its limits.
kernels: setup
	TRITON_INTERPRET=1 $(PYTEST) -n 2 --timeout 3600 tests/kernels
	TRITON_INTERPRET=0 $(BIN)/python benchmarks/kernels_aot.py

bench: setup
	$(BIN)/python benchmarks/image_adapter.py
	$(BIN)/python benchmarks/simplicial_attention.py

clean:
	rm -rf .venv .pytest_cache .ruff_cache .import_linter_cache
