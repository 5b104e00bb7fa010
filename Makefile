# make demo    export, verify, measure and ask the bundled model; the report is out/report.html
# make test    lint, types and the whole test suite
# Each works first and alone on a fresh Debian with Python 3.11 (venv module) and a C++ compiler: what is missing is
# installed into .venv. Output of quiet steps is in build/log/.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install lint test demo bench bench-peers bench-large interop clean

PYTHON3 ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PYTHON := $(VENV)/bin/python
EDGEVLM := $(VENV)/bin/edgevlm
PIP := $(PYTHON) -m pip --disable-pip-version-check install --no-compile --progress-bar off -c constraints.txt
STEP := tools/step
STAMP := $(VENV)/.installed
ORACLE := $(VENV)/oracle/.installed

help:
	@sed -n '1,2s/^# //p' Makefile
	@echo "make lint, make bench, make bench-peers, make bench-large (20 GB of disk), make interop (needs Node.js), make clean"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt tools/llama_wheel.py
	@$(STEP) "check Python" $(PYTHON3) -c 'import sys, venv, ensurepip; \
	  sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON3=/path/to/python3.11")'
	@test -x $(PYTHON) || $(STEP) "create .venv" $(PYTHON3) -m venv $(VENV)
	@$(STEP) "install build tools" $(PIP) setuptools wheel
	@$(STEP) "install torch" $(PIP) torch==2.13.0
	@$(STEP) "install llama.cpp (built once a machine)" $(PYTHON) tools/llama_wheel.py --constraints constraints.txt
	@$(STEP) "install EdgeVLM and its libraries" $(PIP) --no-build-isolation -e '.[all,dev]'
	@$(STEP) "check the installation" $(PYTHON) -m pip check
	@touch $(STAMP)

$(ORACLE): tests/oracles.txt $(STAMP)
	@$(STEP) "install test oracles" $(PIP) --no-deps --upgrade --target $(VENV)/oracle -r tests/oracles.txt
	@touch $(ORACLE)

lint: $(STAMP)
	@$(STEP) "ruff check" $(VENV)/bin/ruff check .
	@$(STEP) "ruff format" $(VENV)/bin/ruff format --check .
	@$(STEP) "mypy --strict" $(VENV)/bin/mypy

test: lint $(ORACLE)
	@$(PYTHON) -m pytest -n auto --maxprocesses=4 --dist loadfile

demo: $(STAMP)
	@$(STEP) "export to ONNX int4, and verify" $(EDGEVLM) export zoo:nano-fastvlm --format onnx --precision int4 -o out/onnx-int4 --force
	@$(STEP) "export to GGUF Q4_0, and verify" $(EDGEVLM) export zoo:nano-fastvlm --format gguf --gguf-type q4_0 -o out/gguf-q4_0 --force
	@$(EDGEVLM) bench out/onnx-int4 out/gguf-q4_0 --tasks scenes -n 300 -o out
	@$(PYTHON) tools/ask_number.py out/number.png out/onnx-int4 out/gguf-q4_0
	@echo "Open out/report.html"

bench: $(STAMP)
	@mkdir -p out
	@$(STEP) "install onnxruntime-genai to compare with" $(PIP) --no-deps onnxruntime-genai==0.18.0
	@$(PYTHON) -m pytest bench/suite --benchmark-enable --benchmark-only --benchmark-json=out/bench.json
	@$(PYTHON) -m edgevlm.bench.suite.baseline out/bench.json $(BASELINE)

bench-peers: $(STAMP)
	@mkdir -p out
	@$(STEP) "install onnxruntime-genai to compare with" $(PIP) --no-deps onnxruntime-genai==0.18.0
	@$(PYTHON) -m edgevlm.bench.suite.peers -o out

bench-large: $(STAMP)
	@mkdir -p out
	@$(PYTHON) -m pytest bench/suite/large_exports.py bench/suite/large_quantize.py -s --benchmark-enable --benchmark-only --benchmark-json=out/bench-large.json

interop: $(STAMP)
	@$(STEP) "install transformers.js" env ONNXRUNTIME_NODE_INSTALL_CUDA=skip npm ci --prefix tests/interop
	@$(STEP) "transformers.js answers alike" $(PYTHON) -m pytest tests/interop

clean:
	@rm -rf out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .benchmarks $(VENV)
	@find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
