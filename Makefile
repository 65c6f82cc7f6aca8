# make demo   a table of the article's ablation, trained here, in some minutes
# make demo-slurm   the same on a Slurm of this machine's own (slurm/devcluster up)
# make test   all tests
# make check  format, lint, types, spelling
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Container images often set it; then every rank would compile torch and DeepSpeed anew, at each start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo demo-slurm test check format clean
demo: $(VENV)/.demo
	$(BIN)/python -m furnace_hpc.submit --grid ablation --cluster local

demo-slurm: $(VENV)/.demo
	$(BIN)/python -m furnace_hpc.submit --grid ablation --cluster devcluster --yes --wait

test: $(VENV)/.dev
	$(BIN)/python -m pytest

check: $(VENV)/.dev
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/codespell

format: $(VENV)/.dev
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

# --no-compile: more than half of an installation is compiling modules that are never imported.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable

$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) ".[demo]"
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(INSTALL) ".[dev]"
	touch $@

clean:
	rm -rf $(VENV)
