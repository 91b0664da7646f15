# SPDX-License-Identifier: Apache-2.0
# `make demo` shows the main job, `make test` proves it. Both set up what they need first.

PY := .venv/bin/python
.DEFAULT_GOAL := help

.PHONY: help
help: ## this text
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

.PHONY: setup
setup: ## install what is missing: Debian packages (as root), .venv, the BPF objects, the C module
	@tools/setup.sh

.PHONY: demo
demo: setup ## four servers, two sites, one prefix, before your eyes (root, about a minute)
	@.venv/bin/softunicast lab demo

.PHONY: test
test: setup check ## all tests (root)
	@$(PY) tools/run_tests.py

.PHONY: check
check: setup ## lint, format, types, rules of dependency
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check --quiet .
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-cache
	@$(PY) tools/gen_abi.py --check

.PHONY: quick
quick: ## the inner loop: pure tests, no root, seconds
	@$(PY) -m pytest -q tests/unit tests/property -x

.PHONY: fuzz
fuzz: setup ## damaged packets for the parsers; make fuzz SECONDS=600 (root)
	@$(PY) -m tests.fuzz.fuzz --seconds $(or $(SECONDS),10)

.PHONY: bench
bench: setup ## measure against peers in one run; writes docs/performance*.md (root, minutes)
	@$(PY) -m bench --write docs/performance.md
	@$(PY) -m bench.relays --write docs/performance-proxy.md
	@$(PY) -m bench.terminated --write docs/performance-terminate.md

.PHONY: strategies
strategies: setup ## softunicast escape, written into docs/strategies.md (root, some minutes)
	@$(PY) tools/gen_strategies.py

.PHONY: lab
lab: setup ## bring the lab up and leave it up; softunicast lab --help
	@.venv/bin/softunicast lab up

.PHONY: wheel
wheel: setup ## build dist/*.whl, which carries what is compiled, the C module
	@$(PY) -m build --wheel --no-isolation

.PHONY: lock
lock: ## resolve requirements.lock anew (needs pip-tools)
	@$(PY) -m piptools compile --quiet --generate-hashes --extra dev --strip-extras --allow-unsafe --no-emit-index-url --no-emit-find-links -o requirements.lock pyproject.toml

.PHONY: clean
clean: ## remove what was built; the lab goes down
	@if [ -x .venv/bin/softunicast ]; then .venv/bin/softunicast lab down || true; fi
	@$(MAKE) --no-print-directory -C bpf clean
	@$(MAKE) --no-print-directory -C native clean
	@rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
