# `make demo` installs and runs the demo, `make test` installs and runs the tests; both use a virtual environment of their own.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: demo test install clean

demo: install
	$(BIN)/ns-dialogue demo

test: install
	$(BIN)/python -m pytest -n 2 --dist worksteal

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt requirements-process.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-compile --no-deps --requirement requirements-process.txt
	@# pip would compile 28,000 files one after the other. What does not compile is left to the import that needs it: torch
	@# ships a file for newer Pythons than ours.
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	touch $@

clean:
	rm -rf $(VENV)
