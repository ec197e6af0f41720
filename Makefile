# fedpact: `make help` lists what can be done. Every target builds what it needs in .venv.
PYTHON ?= python3
PIP = .venv/bin/pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: help demo test unit mutants check bench docs proto clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/demo.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@echo "Installing fedpact and its libraries into .venv (a few minutes the first time)"
	$(PIP) --editable '.[demo]'
	touch $@

.venv/dev.stamp: .venv/demo.stamp
	$(PIP) --editable '.[demo,dev,figures,media,postgres,simulation]'
	touch $@

demo: .venv/demo.stamp  ## a whole federation on this machine (about three minutes)
	.venv/bin/fedpact demo

# Tests run with one thread each, two files at a time; in their order, so that the long ones of
# e2e/ do not come last.
PYTEST = .venv/bin/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: .venv/dev.stamp  ## every test, the end-to-end ones too
	$(PYTEST)

unit: .venv/dev.stamp  ## the quick tests alone
	$(PYTEST) -m 'not e2e'

mutants: .venv/dev.stamp  ## one-line mistakes, each of which a test must find
	.venv/bin/python tests/mutants.py

check: .venv/dev.stamp  ## formatting, lint, types, the arrows between the rooms
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy common/fedpact server/fedpact client/fedpact simulations/fedpact benchmarks docs
	.venv/bin/lint-imports

bench: .venv/dev.stamp  ## every benchmark, one table each
	for script in benchmarks/[a-z]*.py; do .venv/bin/python $$script || exit 1; done

docs: .venv/dev.stamp  ## write the generated reference pages again
	.venv/bin/python docs/generate.py

proto: .venv/dev.stamp  ## generate the control plane's code again
	.venv/bin/python -m grpc_tools.protoc -I common --python_out=common --pyi_out=common \
	  --grpc_python_out=common fedpact/common/v1/federation.proto

clean:  ## remove the environment and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
