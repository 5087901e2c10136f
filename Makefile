# `make betas` and `make test` set everything up in .venv, with the versions of constraints.txt.
PYTHON ?= python3.11
RUN := .venv/bin/python
# PyTorch's builds for CUDA are large; where an index offers a build for CPUs, pip takes it by this version.
TORCH := torch==2.13.0
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: betas test proofs check clean

betas: .venv/run
	$(RUN) -m sweeps.betas

# A process a core, each of which takes whole files.
test: .venv/test
	$(RUN) -m pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder --durations=10

# What takes too long for every change, with XLA as users have it.
proofs: .venv/test
	XLA_FLAGS= $(RUN) -m pytest -m slow

check: .venv/test
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m pyright

.venv/run: pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv .venv
	$(INSTALL) --editable .
	touch $@

.venv/test: .venv/run
	$(INSTALL) $(TORCH)
	$(INSTALL) --editable '.[sae,dev]'
	touch $@

clean:
	rm -rf .venv
