# A newcomer types `make demo` and `make test`; everything else is a part of those two.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= demo_out
IMAGE  ?= examples/scene.png
PROMPT ?= What color is the star?
# Files of tests run side by side, in so many processes of up to 5 GB; in their order, as the slowest files are of few tests.
WORKERS ?= 2

CCACHE := $(if $(shell command -v ccache),-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-slow test-installs test-triton test-ray lint format cpp plugins clean

$(BIN)/trtprune: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -e '.[cpu]'
	@touch $@

# Stamp, so that the (large) test dependencies are installed only when the list changes.
$(VENV)/.test-extra: $(BIN)/trtprune pyproject.toml
	$(BIN)/python -m pip install -q -e '.[test]'
	@touch $@

demo: $(BIN)/trtprune
	$(BIN)/trtprune build --model demo --keep 64 -o $(OUT)
	$(BIN)/trtprune run $(OUT) --image $(IMAGE) --prompt "$(PROMPT)" --json
	$(BIN)/trtprune show $(OUT) --image $(IMAGE) --prompt "$(PROMPT)" --keep 64 --keep 16 \
	    --method adafv --method fastervlm -o $(OUT).png
	@echo "kept tokens: $(OUT).png"

test: $(VENV)/.test-extra lint cpp
	$(PYTEST) -m 'not slow'

# What takes minutes: builds and installs of the package, by every installer, on every interpreter found here.
test-slow: $(VENV)/.test-extra
	$(PYTEST) -m slow

# Of those what CI tries: other Pythons than the one of `make test`, the wheel and the sdist, pip and uv.
test-installs: $(VENV)/.test-extra
	$(PYTEST) -m slow tests/project/test_packaging.py -k "3.12-uv-wheel or 3.13-pip-wheel or 3.12-pipx-sdist"

# Triton's real server, installed into an environment of its own, with a model repository of `trtprune triton`.
test-triton: $(VENV)/.test-extra
	$(BIN)/python -m pytest -m slow tests/serving/test_triton.py

# A Ray cluster of two nodes on this machine, in an environment of its own, with a replica and a node killed under load.
test-ray: $(VENV)/.test-extra
	$(BIN)/python -m pytest -m slow tests/serving/test_ray.py

lint: $(VENV)/.test-extra
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

format: $(VENV)/.test-extra
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The C++ library, its unit tests and examples, into build/cpp; downloads the libraries that are not installed.
cpp: $(VENV)/.test-extra
	PATH="$(abspath $(BIN)):$$PATH" cmake -S cpp -B build/cpp -G Ninja -DTRTPRUNE_FETCH=ON -DTRTPRUNE_TENSORRT=ON \
	    -DPython3_EXECUTABLE="$(abspath $(BIN))/python" $(CCACHE)
	PATH="$(abspath $(BIN)):$$PATH" cmake --build build/cpp
	PATH="$(abspath $(BIN)):$$PATH" ctest --test-dir build/cpp --output-on-failure

# CUDA kernels and TensorRT plugins, into build/plugins; downloads nvcc where there is none.
plugins: $(VENV)/.test-extra
	PATH="$(abspath $(BIN)):$$PATH" cmake -S plugins -B build/plugins -G Ninja -DTRTPRUNE_FETCH_NVCC=ON
	PATH="$(abspath $(BIN)):$$PATH" cmake --build build/plugins

clean:
	rm -rf $(OUT) $(OUT).png build dist *.egg-info
