# `make betas` and `make test` set everything up in .venv, with the versions of constraints.txt.
PYTHON ?= python3.11
RUN := .venv/bin/python
# PyTorch's builds for CUDA are large; where an index offers a build for CPUs, pip takes it by this version.
TORCH := torch==2.13.0
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: betas test check clean

betas: .venv/run
	$(RUN) -m sweeps.betas

test: .venv/test
	$(RUN) -m pytest

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
