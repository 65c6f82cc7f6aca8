# make demo   a table of the article's ablation, trained here, in some minutes
# make demo-slurm   the same on a Slurm of this machine's own (slurm/devcluster up)
# make test   all tests
# make check  format, lint, types, spelling
# make docs   the documentation as a site, in build/site
# PYTHON=python3.12 after any of them: make the environment with that Python
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Container images often set it; then every rank would compile torch and DeepSpeed anew, at each start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo demo-slurm test check docs format clean
demo: $(VENV)/.demo
	$(BIN)/furnace submit --grid ablation --cluster local

demo-slurm: $(VENV)/.demo
	$(BIN)/furnace submit --grid ablation --cluster devcluster --yes --wait

test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

docs: $(VENV)/.docs
	$(BIN)/python docs/generate_reference.py && $(BIN)/zensical build --clean --strict

check: $(VENV)/.dev
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/codespell

format: $(VENV)/.dev
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

# --no-compile: more than half of an installation is compiling modules that are never imported.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable

# Old Pythons run this line too. The environment is made only where there is none that pip and Furnace can use.
NEW_ENOUGH := import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else 'error: Furnace needs Python 3.11 \
	or newer, and $(PYTHON) is Python %d.%d.%d. Name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)' % v[:3])

$(VENV)/.demo: pyproject.toml constraints.txt
	@$(BIN)/python -c "$(NEW_ENOUGH)" 2>/dev/null && $(BIN)/python -m pip --version >/dev/null 2>&1 || \
	  { $(PYTHON) -c "$(NEW_ENOUGH)" && { $(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }; }; }
	$(INSTALL) ".[demo]"
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(INSTALL) ".[dev]"
	touch $@

$(VENV)/.docs: $(VENV)/.demo
	$(INSTALL) ".[docs]"
	touch $@

clean:
	rm -rf $(VENV)
