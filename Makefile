# Two targets, each from a fresh clone to the end: `make search` and `make test`. PYTHON may name another interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: search test clean

search: $(READY)
	$(BIN)/niwaki search

# One thread each: the tests run beside each other, and small networks gain nothing from more.
test: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 src tests

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]" -c constraints.txt
	touch $(READY)

# Not `runs`: those are networks that somebody has trained.
clean:
	rm -rf $(VENV)
