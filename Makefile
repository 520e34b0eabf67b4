# `make help` lists the targets. Everything runs in .venv, which holds exactly what requirements.lock names.

UV_VERSION := 0.13.9
VENV := .venv
RUN := $(VENV)/bin/python

# The first Python that is new enough; `make PYTHON=...` chooses another.
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
endif

# One thread per process: several notebooks run at a time, and small nets gain nothing from a second thread.
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export UV_HTTP_TIMEOUT ?= 300
# A mirror that pip knows from the environment serves uv too.
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif

# One worker per core, at most eight: each holds PyTorch in memory. WORKERS=0 is pytest alone, without pytest-xdist.
WORKERS ?= logical
PYTEST := $(RUN) -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadgroup

.PHONY: help env book test test-slow lint format smoke lab mutants results gpu compare bench kills lock clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "make %-10s %s\n", $$1, $$2 }'

env: ## make .venv from requirements.lock, where it is not up to date
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer was found: install one, or name it with make PYTHON=/path/to/python." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11 or does not start: name a newer one with make PYTHON=/path/to/python." >&2; exit 1; }
	@lock=$$($(PYTHON) -c 'import hashlib; print(hashlib.sha256(open("requirements.lock", "rb").read()).hexdigest())'); \
	test "$$lock" = "$$(cat $(VENV)/lock.sha256 2>/dev/null)" && test -x $(RUN) && exit 0; \
	echo "Installing into $(VENV) what requirements.lock names (with PyTorch: several GB the first time)"; \
	$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) cannot make virtual environments: install its venv package (python3-venv on Debian and Ubuntu)." >&2; exit 1; }; \
	$(RUN) -m pip install --quiet uv==$(UV_VERSION) && \
	$(VENV)/bin/uv pip install --quiet --python $(RUN) --require-hashes -r requirements.lock && \
	$(VENV)/bin/uv pip install --quiet --python $(RUN) --no-deps --no-build-isolation -e . && \
	echo "$$lock" > $(VENV)/lock.sha256

book: env ## execute what changed at preset quick and build the book into build/book/_build/html
	@$(RUN) -m book.build

test: lint ## lint, science and unit tests, every notebook at smoke, the book's build and links
	@$(PYTEST) -m "not slow"

test-slow: env ## the slow groups: many kills, many papermill runs, every page in a browser
	@$(PYTEST) -m slow

lint: env ## ruff over code and notebooks
	@$(RUN) -m ruff check --quiet .
	@$(RUN) -m ruff format --check --quiet . || { echo "Some files are not formatted: make format." >&2; exit 1; }

format: env ## let ruff format code and notebooks
	@$(RUN) -m ruff format --quiet .

smoke: env ## every notebook at preset smoke, no pages
	@$(RUN) -m book.build --preset smoke --no-pages

# Beside the environment, too: JupyterLab would slow the start of every papermill run.
build/lab: | env
	@wanted=$$($(RUN) -c 'import tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["lab"][1])') && \
	$(VENV)/bin/uv pip install --quiet --python $(RUN) --target build/lab.new -c requirements.lock "$$wanted" && \
	rm -rf build/lab && mv build/lab.new build/lab

lab: build/lab ## open the notebooks in JupyterLab, installed into build/lab on the first call
	@PYTHONPATH=build/lab JUPYTERLAB_DIR=build/lab/share/jupyter/lab $(RUN) -m jupyterlab notebooks

mutants: env ## plant slips in the library; the tests must catch each
	@$(RUN) tests/mutants.py

results: env ## run the committed long rows of data/results again (hours)
	@$(RUN) benchmarks/results.py

gpu: env ## fill the rows and checkpoints that need a GPU (ARGS="--minutes 9" stops in time, ARGS="--dry-run" on any machine)
	@$(RUN) benchmarks/results.py --gpu $(ARGS)

# Beside the environment, which holds what the lock file names and no more; all that ebmkit needs is PyTorch.
compare: env ## train two methods beside ebmkit's and write data/results/methods_ebmkit.json (hours)
	@wanted=$$($(RUN) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["compare"])') && \
	$(VENV)/bin/uv pip install --quiet --python $(RUN) --no-deps --target build/compare "$$wanted"
	@PYTHONPATH=build/compare $(RUN) benchmarks/against_ebmkit.py

# Beside the environment, too; all that either peer needs is PyTorch.
bench: env ## time a Langevin step beside torchebm's and ebmkit's, into data/benchmarks (minutes; ARGS="--device cuda")
	@wanted=$$($(RUN) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["bench"])') && \
	$(VENV)/bin/uv pip install --quiet --python $(RUN) --no-deps --target build/bench $$wanted
	@PYTHONPATH=build/bench $(RUN) benchmarks/speed.py $(ARGS)

kills: env ## kill a training run 100 times at random moments, resume each, count (minutes)
	@OMP_NUM_THREADS=1 $(RUN) benchmarks/kills.py

# uv leaves the address of the index out of the lock. Pins stay where they still satisfy pyproject.toml; UPGRADE=--upgrade takes the newest of everything.
lock: env ## resolve pyproject.toml into requirements.lock
	@$(VENV)/bin/uv pip compile pyproject.toml --quiet $(UPGRADE) --universal --python-version 3.11 --generate-hashes \
		--extra book --extra test --extra data --custom-compile-command "make lock" -o requirements.lock

clean: ## remove what was built; the environment, data and runs stay
	@rm -rf build .pytest_cache .ruff_cache
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
