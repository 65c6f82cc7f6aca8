# make demo        train the article's ablation on this machine and print its table, in about ten minutes
# make demo-slurm  the same on a Slurm on this machine (slurm/devcluster up)
# make test        fast tests: real processes, and one path through a real Slurm
# make test-slow   the other tests
# make test-slurm  all tests on a real Slurm; with SLURM=24.11 in another Debian release, which slurm/roots prepares
# make test-all    all tests
# make check       format, lint, types, spelling
# make bench       compare the speed with that of the newest release; BASE=NAME names another commit or tag
# make docs        the documentation as a site, in build/site
# make dist        the wheel and the source archive in dist/, checked (docs/releasing.md)
# Add PYTHON=python3.12 to any of them to make the environment with that Python, and TORCH=cpu (or cu126, cu130) to take
# that build of torch from PyTorch's own index. By default pip takes torch from where it takes all packages.
PYTHON ?= python3
TORCH ?=
VENV := .venv
BIN := $(VENV)/bin

# Container images often set it. Then every rank would compile torch and DeepSpeed at each start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo demo-slurm test test-slow test-slurm test-all bench check docs dist format clean
demo: $(VENV)/.demo
	$(BIN)/furnace demo

demo-slurm: $(VENV)/.demo
	$(BIN)/furnace demo --cluster devcluster

# tests/conftest.py has the order of the tests, and which share a worker. Workers wait part of their time, those of
# slow tests most of it.
PYTEST := $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder --numprocesses

test: $(VENV)/.dev
	$(PYTEST) 3 -m "not slow"

test-slow: $(VENV)/.dev
	$(PYTEST) 4 -m "slow or fuzz" --hypothesis-profile=full

# TESTS="tests/real_slurm/test_devcluster.py ..." chooses files.
test-slurm: $(VENV)/.dev
ifdef SLURM
	slurm/roots make $(SLURM)
	slurm/roots run $(SLURM) $(PYTEST) 4 -m slurm $(TESTS)
else
	$(PYTEST) 4 -m slurm $(TESTS)
endif

test-all: test test-slow

bench: $(VENV)/.demo
	$(BIN)/python benchmarks/compare.py $(if $(BASE),--base $(BASE))

docs: $(VENV)/.docs
	$(BIN)/python docs/generate_reference.py && $(BIN)/zensical build --clean --strict

dist: $(VENV)/.dev
	rm -rf dist && $(BIN)/python -m build --no-isolation && $(BIN)/python -m twine check --strict dist/*

check: $(VENV)/.dev
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/codespell

format: $(VENV)/.dev
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

# Compiling modules that are never imported would take half of the installation time.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable

# Old Pythons run this line too. An environment that pip and Furnace can use is kept.
NEW_ENOUGH := import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else 'error: Furnace needs Python 3.11 \
	or newer, and $(PYTHON) is Python %d.%d.%d. Name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)' % v[:3])

# Without a build of torch in the name, the environment that exists is kept, whatever its build is.
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)
TORCH_INDEX = https://download.pytorch.org/whl/$(TORCH)
SIZES = Installing into $(VENV). To download, if it is new: 0.45 GB with a CPU build of torch (TORCH=cpu chooses it), 3.0 GB \
	with the CUDA build, which is the default of the public index

$(VENV)/.torch-%: $(VENV)/.made
	@echo "$(SIZES)"
	$(BIN)/python -m pip install --quiet --no-compile "torch==$(TORCH_VERSION)+$*" --index-url $(TORCH_INDEX)
	rm -f $(VENV)/.torch-* && touch $@

$(VENV)/.demo: $(VENV)/.made $(addprefix $(VENV)/.torch-,$(TORCH))
	@echo "$(SIZES)"
	$(INSTALL) ".[demo]"
	touch $@

$(VENV)/.made: pyproject.toml constraints.txt
	@$(BIN)/python -c "$(NEW_ENOUGH)" 2>/dev/null && $(BIN)/python -m pip --version >/dev/null 2>&1 || \
	  { $(PYTHON) -c "$(NEW_ENOUGH)" && { $(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }; }; }
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(INSTALL) ".[dev]"
	touch $@

$(VENV)/.docs: $(VENV)/.demo
	$(INSTALL) ".[docs]"
	touch $@

clean:
	rm -rf $(VENV)
