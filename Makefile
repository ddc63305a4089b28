# The targets: demo, test, test-slow, bench, lint, docs, readme-figures,
# readme-leaderboard, wheel. Each sets up what it needs.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test test-slow bench lint docs readme-figures readme-leaderboard wheel clean

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

demo: $(STAMP)  ## fit a VAE to the embedded digits and write its report
	$(BIN)/zoo fit vae --data digits

test: $(STAMP)  ## the default suite, one process for each core
	$(BIN)/python -m pytest -m "not slow" -n auto --dist worksteal

test-slow: $(STAMP)  ## the long ones as well: real images, several seeds, a GPU where there is one
	$(BIN)/python -m pytest -n auto --dist worksteal

slow-list: $(STAMP)  ## measure which tests take long, so that `make test` leaves them out
	$(BIN)/python -m pytest -n auto --dist worksteal -q --durations=0 --durations-min=1 \
		| $(BIN)/python tests/slow_list.py

bench: $(STAMP)  ## ratios against named peers, interleaved in one run
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	TORCHINDUCTOR_COMPILE_THREADS=1 $(BIN)/python -m benchmarks

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

docs: $(STAMP)  ## the site, in site/: strict and offline
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/python docs/make_pages.py
	$(BIN)/mkdocs build --strict --quiet

readme-figures: $(STAMP)  ## the pictures of the README
	$(BIN)/python docs/make_readme_figures.py

readme-leaderboard: $(STAMP)  ## the numbers of the README's densities, in a quarter of an hour
	$(BIN)/python docs/make_readme_leaderboard.py

wheel: $(STAMP)  ## the package, in dist/
	$(BIN)/python -m pip install --quiet --editable '.[release]'
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) build dist site *.egg-info
