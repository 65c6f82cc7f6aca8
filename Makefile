# make demo   a table of the article's ablation, trained here, in some minutes
# make test   all tests
# make check  format, lint, types, spelling
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check format clean
demo: $(VENV)/.demo
	$(BIN)/python -m furnace_hpc.submit --grid ablation --cluster local

test: $(VENV)/.dev
	$(BIN)/python -m pytest

check: $(VENV)/.dev
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/codespell

format: $(VENV)/.dev
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[demo]"
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV)
