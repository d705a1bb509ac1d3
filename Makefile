# make run   install, run the whole pipeline on the embedded model, say where the report is
# make test  install more, then ruff, strict mypy, the graph, and all tests that need no GPU

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check
INSTALLED := $(VENV)/.installed
WITH_MIXER := $(VENV)/.installed-mixer
WITH_TESTS := $(VENV)/.installed-tests

export PATH := $(abspath $(BIN)):$(PATH)
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1
# Set in many containers and shells: every stage would compile torch and diffusers again, for 10 s.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run flow serve mcp mixer image image-cuda ablation docs test lint types unit clean

# DVC deletes a stage's outputs before the stage can refuse its input: bring the last good ones back.
# Of a LoRA from elsewhere (split.adapter) only what uses it is run: nothing is trained.
run: $(INSTALLED)
	python -m stages.runtime.machine
	targets=$$(python -m flows.targets) && dvc repro $$targets || { dvc --quiet checkout 2> /dev/null; exit 1; }
	@echo "Report: file://$(abspath data/report/index.html)"

flow: $(INSTALLED)
	python -m flows.pipeline

# Prefect's server and a worker on this machine, until Ctrl-C: docs/serving.md. Options go into a
# variable, SERVE="--port 4201" here, MCP and MIXER below.
serve: $(INSTALLED)
	python -m flows.serve $(SERVE)

# Container images, for the machine they are built on and for others: docker/README.md.
image:
	docker build --file docker/Dockerfile --target cpu --tag blocklens:cpu .

image-cuda:
	docker build --file docker/Dockerfile --target cuda $(if $(CUDA),--build-arg CUDA=$(CUDA)) --tag blocklens:cuda .

# The same for other programs: an MCP server on this machine, beside `make serve`: docs/mcp.md.
mcp: $(INSTALLED)
	python -m flows.mcp_server $(MCP)

# Blocks on and off by hand, on a page of this machine, until Ctrl-C: docs/mixer.md.
mixer: $(WITH_MIXER)
	python -m mixer $(MIXER)

# One training per value of flows/ablation.yaml, and their table in docs/ablation.md.
ablation: $(INSTALLED)
	python -m flows.ablation

# The pages that commands write: docs/parameters.md, docs/formats.md, pictures of the report.
docs: $(WITH_TESTS)
	python -m docs.writers.parameters
	python -m docs.writers.formats
	python -m docs.writers.pictures

test: lint types unit

lint: $(WITH_TESTS)
	ruff check .
	ruff format --check .
	dvc dag --dot > /dev/null

types: $(WITH_TESTS)
	mypy flows mixer stages benchmarks docs/writers

# As many at once as there are cores, each on one thread. PYTEST="--numprocesses 0" runs them in a row.
unit: export OMP_NUM_THREADS := 1
unit: $(WITH_TESTS)
	pytest -m "not gpu" --numprocesses auto --maxprocesses 8 $(PYTEST)

# What runs need, at the versions of the lock; torch's CPU build where pip offers one under that
# version.
$(INSTALLED): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	# Most modules are never imported: those that are get compiled then.
	$(INSTALL) --no-compile --constraint requirements.lock --editable '.[orchestration,mcp]'
	touch $@

$(WITH_MIXER): $(INSTALLED) requirements-mixer.lock
	$(INSTALL) --no-deps --requirement requirements-mixer.lock
	touch $@

$(WITH_TESTS): $(WITH_MIXER)
	$(INSTALL) --requirement requirements.lock
	touch $@

clean:
	rm -rf .blocklens .mypy_cache .pytest_cache .ruff_cache
