# Everything is installed into .venv; `make help` lists what there is.
#
#   PYTHON=python3.12   the Python that .venv is made with, once
#   TORCH_INDEX=URL     take torch from this index, for example $(CPU_INDEX)
#   TORCH_INDEX=        take torch from pip's own indexes
#   ARGS=...            more options for pyro-vae or pytest

PYTHON ?= python3
TORCH_INDEX ?= auto
ARGS ?=
CPU_INDEX := https://download.pytorch.org/whl/cpu

VENV := .venv
PY = $(VENV)/bin/python
RUN := $(VENV)/.installed
TEST := $(VENV)/.installed-test
DOCS := $(VENV)/.installed-docs

# The tested versions: ArviZ 0.23 for Python 3.11, ArviZ 1 for those that can have it.
WHICH = import sys; print("constraints.txt" if sys.version_info < (3, 12) else "constraints-3.12.txt")
CONSTRAINTS := $(or $(shell $(or $(wildcard $(PY)),$(PYTHON)) -c '$(WHICH)' 2>/dev/null),constraints.txt)

# Each worker has one thread: two workers of two threads each would wait for one another.
PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help compare test slow matrix lint docs bench reproduce lock clean
.NOTPARALLEL: # one pip at a time

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

compare: $(RUN) ## AEVB, wake-sleep and Monte Carlo EM on the embedded digits
	$(VENV)/bin/pyro-vae compare $(ARGS)

test: $(TEST) ## the tests and the examples in docstrings
	$(PYTEST) $(ARGS)

slow: $(TEST) ## the tests that take longer
	$(PYTEST) -m slow $(ARGS)

matrix: ## the tests that versions touch, under every Python, torch and ArviZ that can be had here
	.ci/matrix $(ARGS)

lint: $(TEST) ## style and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

docs: $(DOCS) ## the documentation site, in docs/_build/html
	$(PY) -m sphinx -W --keep-going -q docs docs/_build/html $(ARGS)
	@echo "open docs/_build/html/index.html"

bench: $(RUN) ## the speed of a training step beside other ways to take it, and bench.json
	$(PY) benchmarks/step_speed.py --json bench.json $(ARGS)

reproduce: $(RUN) ## the paper's figures, ours over the published ones (ARGS='figure2 --budget 1e6')
	$(VENV)/bin/pyro-vae reproduce $(or $(ARGS),all)

# PYTHON=python3.11 makes constraints.txt, PYTHON=python3.12 the other: newer Pythons can use what
# these can, not the reverse. Without local tags (+cpu) and GPU packages, so that the same file
# serves every build of torch.
lock: VENV := .venv-lock
lock: ## refresh constraints.txt (of the Python that PYTHON names) with the newest versions
	@$(check_python)
	@case $$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])') in 3.11|3.12) ;; \
	  *) echo "error: make lock PYTHON=python3.11, and PYTHON=python3.12" >&2; exit 1;; esac
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	@$(choose_index); set -x; $(PY) -m pip install $$extra -e '.[test,notebook,docs]'
	$(PY) -m pip freeze --all --exclude-editable --exclude pip > $(VENV)/frozen
	{ sed '/^#/!d' $(CONSTRAINTS); \
	  sed -e 's/+[a-z0-9.]*$$//' -e '/^nvidia-/d' -e '/^cuda-/d' -e '/^triton==/d' $(VENV)/frozen | \
	  LC_ALL=C sort -f; } > $(VENV)/constraints.txt
	mv $(VENV)/constraints.txt $(CONSTRAINTS)
	rm -rf $(VENV)

clean: ## remove .venv and what was built
	rm -rf docs/_build docs/api docs/notebooks $(VENV) .venv-lock .venv-matrix build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache

# --- installation -------------------------------------------------------------------------------

$(RUN): $(VENV)/bin/pip pyproject.toml $(CONSTRAINTS)
	@$(choose_index); set -x; $(PY) -m pip install $$extra -c $(CONSTRAINTS) -e .
	@touch $@

$(TEST): $(VENV)/bin/pip pyproject.toml $(CONSTRAINTS)
	@$(choose_index); set -x; $(PY) -m pip install $$extra -c $(CONSTRAINTS) -e '.[test]'
	@# ArviZ 0.23 writes a file at its first import of a day, where two test workers would collide.
	@$(PY) -W ignore -c 'import arviz'
	@touch $(RUN) $@

$(DOCS): $(TEST)
	@$(choose_index); set -x; $(PY) -m pip install $$extra -c $(CONSTRAINTS) -e '.[docs]'
	@touch $@

# pip is the last thing to enter a new .venv, so one that was left half made is made again.
$(VENV)/bin/pip:
	@$(check_python)
	$(PYTHON) -m venv $(VENV)

define check_python
$(PYTHON) -c 'import sys; sys.exit(not sys.version_info[:2] >= (3, 11))' || { \
    echo "error: '$(PYTHON)' is not Python >= 3.11; name one that is: make PYTHON=python3.11" >&2; \
    exit 1; }; \
$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
    echo "error: '$(PYTHON)' cannot make a .venv; on Debian or Ubuntu: sudo apt install python3-venv" >&2; \
    exit 1; }
endef

# PyPI's torch for Linux brings gigabytes of GPU packages. Where there is no GPU, torch comes from
# PyTorch's CPU index instead, provided it answers within three seconds: pip would try for minutes.
# (The alarm ends even a name look-up that hangs, which urlopen's own timeout does not.)
define choose_index
index='$(TORCH_INDEX)'; \
if [ "$$index" = auto ]; then \
    index=; \
    if [ "$$(uname -s)" = Linux ] && ! nvidia-smi >/dev/null 2>&1; then \
        if (exec $(PY) -c 'import signal, urllib.request as u; signal.alarm(3); u.urlopen("$(CPU_INDEX)/torch/")') >/dev/null 2>&1; \
        then index=$(CPU_INDEX); \
        else echo "note: no answer from $(CPU_INDEX); torch comes from pip's own indexes" >&2; fi; \
    fi; \
fi; \
extra=$${index:+--extra-index-url $$index}
endef
