# Everything a newcomer types. Each step leaves a stamp in .venv and runs again only when what it
# depends on has changed; `make` alone lists the targets.

# 3.11 first: it is the oldest Python that tightfit supports, and the one CI runs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
DEMO := out/tiny-r1-rtx3060-8gb
# The TensorRT engine joins where its extra is installed (.[tensorrt], NVIDIA's licence).
DEMO_FORMATS = $(shell $(BIN)/python -c 'from importlib.util import find_spec; \
	print("gguf,onnx" + ",tensorrt" * bool(find_spec("tensorrt_rtx")))')
# Two workers with one thread each: on two cores faster than one worker with two threads.
PYTEST_WORKERS ?= 2

.PHONY: help demo test quality bench clean distclean
.DELETE_ON_ERROR:

help:
	@echo "make demo       install, export tiny-r1 for an 8 GB RTX 3060 as GGUF and ONNX, measure drift"
	@echo "make test       install the test extra, run the whole suite"
	@echo "make quality    ruff, mypy --strict, the layers contract"
	@echo "make bench      quality and speed against other tools, written into docs/"
	@echo "make clean      delete results and caches (distclean: .venv too)"

# torch alone and first, by its exact pin: nothing later can pull another build of it.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	@touch $@

$(VENV)/.product: $(VENV)/.torch pyproject.toml
	$(PIP) -e '.[llamacpp,onnx,drift]'
	@touch $@

# gptqmodel, which reads GPTQ and AWQ checkpoints for transformers, asks for a newer torch than the
# one pinned here and works with it.
$(VENV)/.test: $(VENV)/.product
	$(PIP) -e '.[test]'
	$(PIP) --no-deps gptqmodel
	@touch $@

$(VENV)/.dev: $(VENV)/.product
	$(PIP) -e '.[dev]'
	@touch $@

demo: $(VENV)/.product
	$(BIN)/tightfit export --target rtx3060-8gb --bpw 4.5 --format $(DEMO_FORMATS) -o $(DEMO) --overwrite
	$(BIN)/tightfit verify $(DEMO)
	$(BIN)/tightfit drift $(DEMO) --baseline tiny-r1 --max-drop 3 --report $(DEMO)-drift

test: $(VENV)/.test
	OMP_NUM_THREADS=1 GPTQMODEL_CPU_WORKERS=2 $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist worksteal

quality: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.test
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m benchmarks

clean:
	rm -rf out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
