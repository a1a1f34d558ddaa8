# make demo   set up, build the shipped model for this machine (or DEMO_TARGET), profile it, name the bundle and the page
# make test   set up, lint, types, tests
# make lint   set up, lint and types only
# make fuzz   every reader of files that others wrote, FUZZ_SECONDS (an hour) each; out/fuzz keeps what was found
# make chaos  set up, then kill, starve and soak the commands for an hour: out/chaos/chaos.md (EDGEVIT_DATA: real images)
# make lock   choose the newest versions that pyproject.toml allows, and write them with their hashes (needs uv)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCKS := .ci/locks
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
DEMO := out/demo
DEMO_TARGET ?= host
FUZZ_SECONDS ?= 3600
# What runs edgevit, and beside it what trains and tests it: installed again only when their locks change.
RUN := $(VENV)/.run
TEST := $(VENV)/.test

.PHONY: demo test lint fuzz chaos lock clean

demo: $(RUN)
	$(BIN)/edgevit build --target $(DEMO_TARGET) -o $(DEMO) --force
	$(BIN)/edgevit profile $(DEMO) --images calibration/shipped.toml -o $(DEMO).measurement.json --force
	$(BIN)/edgevit report $(DEMO) $(DEMO).measurement.json --html $(DEMO).html --force
	@echo
	@echo "Bundle: $(CURDIR)/$(DEMO) (and $(DEMO).zip)"
	@echo "Report: $(CURDIR)/$(DEMO).html"

test: lint
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: $(TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fuzz: $(TEST)
	$(BIN)/python -m tests.fuzz all --seconds $(FUZZ_SECONDS)

chaos: $(TEST)
	$(BIN)/python -m tests.chaos -o out/chaos

$(RUN): $(LOCKS)/run.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "edgevit needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) --no-deps --require-hashes -r $(LOCKS)/run.txt
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

# torch comes in a build per kind of machine, so it is pinned by its version; what it needs is in the lock.
$(TEST): $(RUN) $(LOCKS)/test.txt
	$(PIP) --no-deps --require-hashes -r $(LOCKS)/test.txt
	$(PIP) torch==2.13.0
	@touch $@

UV := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	--override $(LOCKS)/overrides.in --upgrade
lock:
	$(UV) pyproject.toml $(LOCKS)/build.in --extra tvm -o $(LOCKS)/run.txt
	$(UV) pyproject.toml $(LOCKS)/build.in $(LOCKS)/torch.in --extra all -c $(LOCKS)/run.txt -o $(LOCKS)/test.txt

clean:
	rm -rf $(VENV) out
