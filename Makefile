# Set-up and the two commands of the README. Everything lands in .venv; PYTHON picks the interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SUDO = $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: demo test soak setup setup-dev ffmpeg clean

# The main job on a recording made on the spot: one face that moves, grows and leaves.
demo: setup
	$(BIN)/python -m vafer.sample demo/videos/astronaut.mp4
	$(BIN)/vafer annotate demo/videos --out demo/results.parquet --overwrite
	@$(BIN)/python -m vafer.sample --show demo/videos/astronaut.mp4 demo/results.parquet demo/astronaut.png

# Lint, types, and all tests with coverage.
test: setup-dev ffmpeg
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --cov --cov-report=term --cov-fail-under=90

# Every fault as often as docs/reliability.md says; an hour or more.
soak: setup-dev ffmpeg
	VAFER_SOAK=1 $(BIN)/python -m pytest tests/test_staged.py tests/test_batcher.py tests/test_table.py

setup: $(BIN)/.installed

setup-dev: $(BIN)/.installed-dev

$(BIN)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(BIN)/.installed-dev: $(BIN)/.installed
	$(BIN)/python -m pip install --quiet --group dev
	touch $@

# The tests make their recordings with ffmpeg and hold vafer's frames against ffprobe's.
ffmpeg:
	@command -v ffprobe >/dev/null || { command -v apt-get >/dev/null && $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq ffmpeg >/dev/null; } || { command -v brew >/dev/null && brew install ffmpeg; } || { echo 'install ffmpeg (with ffprobe) first: the tests need it' >&2; exit 1; }

clean:
	rm -rf $(VENV) demo build *.egg-info
