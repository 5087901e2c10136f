# `make betas` and `make test` set everything up in .venv, with the versions that are pinned for the version of PYTHON:
# `make test PYTHON=python3.13`.
PYTHON ?= python3.11
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
$(if $(VERSION),,$(error there is no $(PYTHON) here; name one that is, as in make test PYTHON=python3.13))
# jax 0.11 and later, and what goes with it, need Python 3.12.
CONSTRAINTS := $(if $(filter 3.11,$(VERSION)),constraints.txt,constraints-3.12.txt)
RUN := .venv/bin/python
# PyTorch's builds for CUDA are large; where an index offers a build for CPUs, pip takes it by this version.
TORCH := torch==2.13.0
# What is never imported need not be compiled; what is, is compiled once, whatever the environment says.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(RUN) -m pip install --no-compile --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)

.PHONY: betas test proofs lens4 check docs clean

betas: .venv/run-$(VERSION)
	$(RUN) -m sweeps.betas

# A process a core, each of which takes whole files.
test: .venv/test-$(VERSION)
	$(RUN) -m pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder --durations=30

# What takes too long for every change, with XLA as users have it. The browser's test needs chromedriver.
proofs: .venv/test-$(VERSION) lens4
	$(INSTALL) --editable '.[proofs]'
	XLA_FLAGS= $(RUN) -m pytest -m slow

check: .venv/test-$(VERSION)
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m pyright

# Pages of the READMEs, of every public name and of the commands, in site/; a reference that leads nowhere fails.
docs: .venv/docs-$(VERSION)
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet --config-file .docs/mkdocs.yml
	@echo "site/index.html"

# The loaders on TransformerLens 4 too, in an environment of its own: SAELens, which .venv has, needs an older one.
LENS4 := .venv-lens4/bin/python
INSTALL4 := $(LENS4) -m pip install --no-compile --quiet --disable-pip-version-check --constraint .venv-lens4/constraints.txt

lens4: .venv-lens4/test-$(VERSION)
	$(LENS4) -m pytest tests/test_torch.py tests/test_folder.py
	$(LENS4) -m tests.parity

.venv-lens4/test-$(VERSION): pyproject.toml $(CONSTRAINTS)
	test -e .venv-lens4/bin/python$(VERSION) || $(PYTHON) -m venv --clear .venv-lens4
	grep -v '^transformer-lens==' $(CONSTRAINTS) > .venv-lens4/constraints.txt
	$(INSTALL4) $(TORCH)
	$(INSTALL4) --editable '.[torch,dev]' transformer-lens==4.3.0
	touch $@

# A .venv of another version is made anew.
.venv/run-$(VERSION): pyproject.toml $(CONSTRAINTS)
	test -e .venv/bin/python$(VERSION) || $(PYTHON) -m venv --clear .venv
	$(INSTALL) --editable .
	touch $@

.venv/test-$(VERSION): .venv/run-$(VERSION)
	$(INSTALL) $(TORCH)
	$(INSTALL) --editable '.[sae,dev]'
	touch $@

.venv/docs-$(VERSION): .venv/run-$(VERSION)
	$(INSTALL) --editable '.[docs]'
	touch $@

clean:
	rm -rf .venv .venv-lens4 site
