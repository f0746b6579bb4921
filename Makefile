# Two commands matter: `make demo` and `make test`. Each does all its own set-up; python3 and make are enough to begin.
PYTHON3 ?= python3
BIN := .venv/bin
# Two API servers side by side, each for whole files: the tests wait more than they compute.
CLUSTER := -n 2 --dist loadfile --ignore tests/cluster/native tests/cluster
# Tests that take seconds are listed one by one, with how long each took.
EACH_TEST := -v -o console_output_style=times
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: help setup demo test test-full lint unit cluster-test e2e bench crds golden reference clean

help:
	@echo "make demo    one LLMService, end to end, on a real cluster that this machine runs itself"
	@echo "make test    every test that needs no GPU"
	@echo "make test-full   the same, and what takes too long for every change: more of real vLLM, the real Karpenter, KEDA, Kueue, LeaderWorkerSet, Envoy and endpoint picker"
	@echo "make lint    ruff, mypy, import-linter"
	@echo "make bench   the benchmarks: tables, and JSON under build/bench/"
	@echo "make setup   only the set-up: .venv with everything"

setup:
	@$(PYTHON3) scripts/bootstrap.py

demo: setup
	@$(BIN)/python -m uellm_devcluster.demo

test: setup
	@$(BIN)/python scripts/stages.py \
		"programs" "$(BIN)/python -m uellm_devcluster.binaries" \
		"lint" "$(MAKE) --no-print-directory lint" \
		"unit and property" "$(BIN)/pytest -q -n auto tests/unit tests/property tests/plans" \
		"cluster: real API server" "$(BIN)/pytest $(EACH_TEST) $(CLUSTER)" \
		"native: real kubelets" "$(BIN)/pytest $(EACH_TEST) tests/cluster/native" \
		"e2e: real kubelets, real vLLM" "$(BIN)/pytest $(EACH_TEST) tests/e2e"

test-full: test
	@$(BIN)/pytest $(EACH_TEST) tests/full

lint:
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

unit: setup
	@$(BIN)/pytest -q -n auto tests/unit tests/property tests/plans

cluster-test: setup
	@$(BIN)/pytest $(EACH_TEST) $(CLUSTER)
	@$(BIN)/pytest $(EACH_TEST) tests/cluster/native

e2e: setup
	@$(BIN)/pytest $(EACH_TEST) tests/e2e

bench: setup
	@mkdir -p build/bench
	@failed=; for bench in bench/*.py; do echo "=== $$bench"; \
		$(BIN)/python $$bench --json build/bench/$$(basename $$bench .py).json || failed="$$failed $$bench"; done; \
		test -z "$$failed" || { echo "missed a target, or could not run:$$failed"; exit 1; }

crds: setup
	@$(BIN)/uellm crds --output-dir manifests/crds --output-dir charts/uellm/files/crds

golden: setup
	@PYTHONPATH=tests $(BIN)/python -m golden

reference: setup
	@$(BIN)/python scripts/reference.py

clean:
	@rm -rf .venv .bootstrap build dist
