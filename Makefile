# `make betas` and `make test` set everything up in .venv, with the versions of constraints.txt.
PYTHON ?= python3.11
RUN := .venv/bin/python
# PyTorch's builds for CUDA are large; where an index offers a build for CPUs, pip takes it by this version.
TORCH := torch==2.13.0
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: betas test proofs lens4 check clean

betas: .venv/run
	$(RUN) -m sweeps.betas

# A process a core, each of which takes whole files.
test: .venv/test
	$(RUN) -m pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder --durations=10

# What takes too long for every change, with XLA as users have it.
proofs: .venv/test lens4
	XLA_FLAGS= $(RUN) -m pytest -m slow

check: .venv/test
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m pyright

# The loaders on TransformerLens 4 too, in an environment of its own: SAELens, which .venv has, needs an older one.
LENS4 := .venv-lens4/bin/python
INSTALL4 := $(LENS4) -m pip install --quiet --disable-pip-version-check --constraint .venv-lens4/constraints.txt

lens4: .venv-lens4/test
	$(LENS4) -m pytest tests/test_torch.py tests/test_folder.py
	$(LENS4) -m tests.parity

.venv-lens4/test: pyproject.toml constraints.txt
	test -x $(LENS4) || $(PYTHON) -m venv .venv-lens4
	grep -v '^transformer-lens==' constraints.txt > .venv-lens4/constraints.txt
	$(INSTALL4) $(TORCH)
	$(INSTALL4) --editable '.[torch,dev]' transformer-lens==4.3.0
	touch $@

.venv/run: pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv .venv
	$(INSTALL) --editable .
	touch $@

.venv/test: .venv/run
	$(INSTALL) $(TORCH)
	$(INSTALL) --editable '.[sae,dev]'
	touch $@

clean:
	rm -rf .venv .venv-lens4
