# Needs Python >= 3.10 and make, nothing else: every target first makes its own environment, once.
#   make demo     pre-train on the embedded handwritten digits and print what was learned
#   make quick    lint and the tests that take a moment: for every save
#   make test     what CI runs: lint, format, types, tests
#   make oldest   the tests with the oldest libraries that pyproject.toml allows, in .venv-oldest
# Another interpreter or place: make demo PYTHON=python3.12 VENV=/somewhere/else

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# A file is one worker's: its fixtures are made once. tests/conftest.py puts the longest first.
SHARED_OUT := --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Without it each of the many processes of the tests would compile torch's Python code again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo quick test check coverage oldest format
.NOTPARALLEL:

demo: $(INSTALLED)
	$(BIN)/python main.py --fname configs/quickstart.yaml

quick: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -q --numprocesses 2 -m "not slow and not processes and not cluster"

test: check

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy
	$(BIN)/python -m pytest $(SHARED_OUT)

coverage: $(INSTALLED)
	$(BIN)/python -m pytest $(SHARED_OUT) --cov=msn --cov-branch --cov-report=term

oldest:
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install -qq --disable-pip-version-check uv
	$(VENV)-oldest/bin/uv pip install --quiet --python $(VENV)-oldest/bin/python \
		--resolution lowest-direct -e ".[dev]"
	$(VENV)-oldest/bin/python -m pytest $(SHARED_OUT)

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python docs/tree.py

# The stamp comes last, so an interrupted installation is taken up again by the next make.
# --no-compile: bytecode is written when a module is first used, not for all of the libraries.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: '$(PYTHON)' is missing or older than Python 3.10; name another: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "error: '$(PYTHON)' cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@echo "installing into $(VENV) (once, about 3 minutes: PyTorch is large)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile -e ".[dev]"
	@touch $@
