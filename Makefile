# Everything runs from .venv, which `setup` makes from a bare Python and from PyPI, and from nothing else.
#
#   make demo                     the demonstration, on all servers
#   make test                     lint, types and tests
#   make setup PYTHON=python3.13  with another Python than python3

PYTHON ?= python3
PYTEST_ARGS ?=
JOBS ?= 3

VENV := .venv
OLDEST := .venv-oldest
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Compiled once, on all cores, whatever PYTHONDONTWRITEBYTECODE says: the tests start a thousand services.
COMPILE := -m compileall -q -j 0 shared sync_impl async_impl compare tests

# Node.js comes from the pinned wheel, not from the machine; and no look-up of a newer pyright.
export PYRIGHT_PYTHON_GLOBAL_NODE := 0
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo parity parity-fuzz chaos fleet bench report docs test test-oldest apps checks lint types mypy pyright browser proxies pytest format lock clean distclean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

setup: $(READY)  ## make .venv, if it is not there or out of date

demo: setup  ## show every backend drain under load, side by side
	@$(BIN)/pooldrain-compare demo

parity: setup  ## play every scenario on every server, and compare them
	@$(BIN)/pooldrain-compare parity

parity-fuzz: setup  ## draw scenarios for both shells, and compare them: TRIALS=2000 SEED=1
	@$(BIN)/pooldrain-compare fuzz $(if $(TRIALS),--trials $(TRIALS)) $(if $(SEED),--seed $(SEED))

chaos: setup  ## hurt services at random, and check what has to hold: TRIALS=500 SEED=1
	@$(BIN)/pooldrain-compare chaos $(if $(TRIALS),--trials $(TRIALS)) $(if $(SEED),--seed $(SEED))

fleet: setup proxies  ## restart fleets behind HAProxy and nginx, under load: does a client notice?
	@$(BIN)/pooldrain-compare fleet

bench: setup  ## measure everything and write the reports; nothing else should run meanwhile
	@$(BIN)/pooldrain-compare bench
	@$(BIN)/pooldrain-compare report

report: setup  ## write compare/reports anew from what was measured
	@$(BIN)/pooldrain-compare report

test: checks pytest  ## lint, types, documentation and tests: what CI runs

# Side by side: hardly any of them uses more than one core.
checks: setup
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target lint mypy pyright docs

# With both: the one of today, and the one that its makers develop instead. A broken link is an error to either.
docs: setup  ## build the documentation's site into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/zensical build --strict

lint: setup  ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: mypy pyright  ## mypy and pyright, both strict

mypy: setup
	$(BIN)/mypy

pyright: setup
	$(BIN)/pyright --pythonpath $(BIN)/python

# The reports' page is looked at in a real browser, which is no Python package.
browser:
	@{ command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null \
		&& command -v chromedriver >/dev/null || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "Installing Chromium, to look at the reports' page (once)"; \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
				apt-get install -y -qq --no-install-recommends chromium chromium-driver >/dev/null; \
		else \
			echo "make: the tests want Chromium; as root:" \
				"apt-get install --no-install-recommends chromium chromium-driver (Debian, Ubuntu)" >&2; \
		fi; }

# Fleets are restarted behind the proxies that people have; these are no Python packages either.
PROXIES := haproxy nginx pgbouncer
proxies:
	@PATH="$$PATH:/usr/sbin:/sbin"; missing=; \
	for each in $(PROXIES); do command -v $$each >/dev/null || missing="$$missing $$each"; done; \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing$$missing, to restart services behind them (once)"; \
		apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
			apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	else \
		echo "make: the tests want proxies; as root:" \
			"apt-get install --no-install-recommends$$missing (Debian, Ubuntu)" >&2; \
	fi

# After the others, also with make -j: its closing line is the last one. Each file's tests stay together, for what
# they share; more files at a time than there are cores on a small machine, since much of the time is spent waiting.
pytest: setup browser proxies | checks
	$(BIN)/pytest --numprocesses $(JOBS) --dist loadfile $(PYTEST_ARGS)

# Most of what differs from one version to another is in the pool and in the servers' adapters: a part of the tests.
OLDEST_TESTS := tests/core/sqla tests/core/test_lifecycle.py tests/examples \
	$(addprefix tests/servers/test_,clients.py connections.py load.py probes.py versions.py workers.py) \
	$(addprefix tests/backends/test_,adopted.py answers.py leaks.py shutdown.py sqlite.py walkthrough.py)
# What old versions say of new ones of what they use.
OLDEST_WARNINGS := -W 'ignore:`general_plain_validator_function` is deprecated:DeprecationWarning'

test-oldest: $(OLDEST)/.ready  ## the same with the oldest versions that pyproject.toml lets in, in part
	$(OLDEST)/bin/pytest --numprocesses $(JOBS) --dist loadfile $(OLDEST_WARNINGS) $(OLDEST_TESTS) $(PYTEST_ARGS)

apps: setup  ## MLflow's server, as it comes from PyPI, on every server: installed once into .venv-apps
	@$(BIN)/python -m tests.apps.mlflow_server

format: setup  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Without options of the machine in the output: no index, no path. pip-tools is wanted here only.
lock: setup  ## pin requirements/dev.txt anew from pyproject.toml
	$(PIP) install --quiet 'pip-tools>=7.5'
	CUSTOM_COMPILE_COMMAND='make lock' $(BIN)/pip-compile --quiet --upgrade --all-extras --strip-extras \
		--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options \
		--annotation-style=line --unsafe-package pooldrain --output-file requirements/dev.txt pyproject.toml
	sed -e 's/pooldrain, //' -e '/^$$/,$$d' requirements/dev.txt >requirements/dev.tmp
	mv requirements/dev.tmp requirements/dev.txt

clean:  ## remove caches and builds
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find shared sync_impl async_impl compare tests -name __pycache__ -prune -exec rm -rf {} +

distclean: clean  ## remove .venv and the embedded database's data too
	rm -rf $(VENV) $(OLDEST) .venv-apps .pooldrain

$(READY): requirements/dev.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { \
		echo "make: no '$(PYTHON)' here; name a Python 3.11 or newer: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "make: Python 3.11 or newer is needed, '$(PYTHON)' is older;" \
			"name a newer one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "make: this Python cannot make environments; as root: apt-get install" \
			"`$(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'`" \
			"(Debian, Ubuntu)" >&2; exit 1; }
	@echo "Setting up $(VENV) (once; it takes a minute or so)"
	@$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@$(PIP) install --quiet --no-compile -r requirements/dev.txt
	@$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@$(BIN)/python $(COMPILE) $(VENV)/lib
	@touch $@

$(OLDEST)/.ready: requirements/oldest.txt $(READY)
	@echo "Setting up $(OLDEST) (once; it takes a minute or so)"
	@$(PYTHON) -m venv --clear $(OLDEST)
	@$(OLDEST)/bin/python -m pip --disable-pip-version-check install --quiet --no-compile -r requirements/dev.txt
	@# uvicorn-worker, which is measured against only, asks for a newer uvicorn, and is told nothing.
	@$(OLDEST)/bin/python -m pip --disable-pip-version-check install --quiet --no-compile --no-deps -r requirements/oldest.txt
	@$(OLDEST)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation -e .
	@# So that asyncio's own loop is tested as well: the others run on uvloop.
	@$(OLDEST)/bin/python -m pip --disable-pip-version-check uninstall --quiet --yes uvloop
	@$(OLDEST)/bin/python $(COMPILE) $(OLDEST)/lib
	@touch $@
