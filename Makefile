# make demo   sets up .venv and walks the digits ladder
# make test   sets up .venv with the developer tools and runs every check
# make docs   writes the generated parts of the documentation again
# make clean  removes .venv
PYTHON ?= python3
BIN := .venv/bin
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
DOCS := README.md docs/cli.md docs/recipe.md docs/results-format.md results/README.md

.PHONY: demo test docs clean

demo: .venv/.demo
	$(BIN)/kdbench run digits

test: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest

docs: .venv/.test
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cog -r $(DOCS)
	$(BIN)/python -m tests.notebook docs/results.ipynb

.venv/.base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "kdbench needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 demo"; exit 2; }
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@touch $@

.venv/.demo: .venv/.base
	$(BIN)/pip install --quiet --editable '.[train]'
	@$(BIN)/pip install --quiet --editable '.[openvino]' || echo "no wheel of the OpenVINO provider here: doing without"
	@touch $@

.venv/.test: .venv/.demo
	$(BIN)/pip install --quiet --editable '.[train,data,hub,dev]'
	@$(BIN)/pip install --quiet --editable '.[loadgen]' || echo "no wheel of MLPerf's loadgen here: doing without"
	@touch $@

clean:
	rm -rf .venv
