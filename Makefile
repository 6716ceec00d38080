# make demo: an environment in .venv, then a real grid of each library.
# make test: all tests. make torture: the whole reliability battery, an hour. make check: lint, format, types.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test torture check coverage reference bench install
install: $(INSTALLED)

$(INSTALLED): requirements.txt setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; give PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

demo: $(INSTALLED)
	cd training_scripts && ../$(BIN)/python3 main.py hyperparams.json hyperranges.json --save-root ../runs
	cd training_scripts && ../$(BIN)/python3 main.py images_hyperparams.json images_hyperranges.json --save-root ../runs

test: $(INSTALLED)
	$(BIN)/python -m pytest -q

torture: $(INSTALLED)
	TORTURE=full $(BIN)/python -m pytest -q -n auto tests/torture

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

coverage: $(INSTALLED)
	$(BIN)/python -m pytest -q --cov --cov-report=term-missing:skip-covered

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks

reference: $(INSTALLED)
	$(BIN)/python -m gridrun.config.reference training_scripts/README.md
