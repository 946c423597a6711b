# Two commands: `make demo` plays everything and writes one page, `make test` runs every test.
# Each makes its own environment in .venv first.

PYTHON ?= python3
VENV := .venv/bin

.PHONY: demo test

demo: .venv/ready
	$(VENV)/openbook demo

test: .venv/ready-dev
	$(VENV)/pytest

.venv/ready: pyproject.toml constraints.txt
	test -x $(VENV)/python || $(PYTHON) -m venv .venv
	$(VENV)/pip install --quiet --constraint constraints.txt torch==2.13.0
	$(VENV)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/ready-dev: .venv/ready
	$(VENV)/pip install --quiet --constraint constraints.txt --editable '.[dev,notebook]'
	touch $@
