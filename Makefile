# make demo   set up, build the shipped model for x86-64-onnxruntime, profile it, name the bundle and the report page
# make test   set up, lint, types, tests
# make lint   set up, lint and types only
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := out/demo

.PHONY: demo test lint clean

demo: $(STAMP)
	$(BIN)/edgevit build --target x86-64-onnxruntime -o $(DEMO) --force
	$(BIN)/edgevit profile $(DEMO) --images calibration/shipped.toml -o $(DEMO).measurement.json --force
	$(BIN)/edgevit report $(DEMO) $(DEMO).measurement.json --html $(DEMO).html --force
	@echo
	@echo "Bundle: $(CURDIR)/$(DEMO) (and $(DEMO).zip)"
	@echo "Report: $(CURDIR)/$(DEMO).html"

test: lint
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Installed again only when the project's requirements change.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "edgevit needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[all]'
	@touch $@

clean:
	rm -rf $(VENV) out
