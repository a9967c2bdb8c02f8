# Two commands do everything: `make quickstart` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# What one process compiles the next one finds: else each start of a worker takes twice as long.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test check audit bench clean

quickstart: $(READY)
	$(BIN)/python -m api_client quickstart $(if $(IMAGES),--images "$(IMAGES)") $(if $(MODEL),--model "$(MODEL)") $(if $(QUERIES),--queries "$(QUERIES)") $(if $(OUT),--out "$(OUT)")

# Three for two cores: a fifth of the time that a test takes it waits for other processes.
test: $(READY)
	$(BIN)/python -m pytest -q -n 3 --dist loadgroup

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# B310: the URL that is opened is the operator's own, see docs/security.md.
audit: $(READY)
	$(BIN)/bandit -q -r api_client worker tasks beat_schedule --severity-level medium --skip B310
	$(BIN)/uv tool run pip-audit==2.10.1 -r constraints.txt --no-deps --disable-pip

bench: $(READY)
	$(BIN)/python -m benchmarks all

clean:
	rm -rf $(VENV) out worker/datapath/eighth-*.so

# uv resolves and installs the pinned set in seconds where pip takes minutes.
$(READY): pyproject.toml constraints.txt worker/datapath/eighth.c
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Clipyard needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check uv==0.13.8
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[worker,ollama,sentence-transformers,sinks,gateway,dashboard,otel,stack,dev]'
	$(BIN)/python -m worker.datapath.native || true
	touch $@
