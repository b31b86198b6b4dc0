# Two commands: `make demo` and `make test`. Both set up everything they need in .venv first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done

.PHONY: setup demo test lint format sanitize fuzz instructions bench clean

setup: $(STAMP)

# The build tools come first, since the editable install builds without isolation (so that it rebuilds quickly);
# torch and torchvision come by name and without their own wishes, see docs/architecture.md; of tritonclient only the
# schema of Triton's configurations is wanted, and what it asks for goes against the versions here.
$(STAMP): pyproject.toml constraints.txt csrc/CMakeLists.txt $(wildcard csrc/*.cpp csrc/*.h)
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: set PYTHON=..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt scikit-build-core pybind11 cmake ninja torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps torchvision tritonclient
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	touch $(STAMP)

demo: setup
	$(BIN)/samdistill demo demo

test: setup lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

CPP := $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h)

# mypy looks at the package as it is installed, samdistill.export inside.
lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	rm -rf build/typed && mkdir -p build/typed
	cp -r samdistill build/typed/samdistill && cp -r export build/typed/samdistill/export
	cd build/typed && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p samdistill
	$(BIN)/stubtest samdistill._core

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

FUZZ_SECONDS ?= 600

# The C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: setup
	$(BIN)/cmake -G Ninja -S csrc -B build/sanitize -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
	  -DSAMDISTILL_PYTHON=OFF -DSAMDISTILL_TESTS=ON "-DSAMDISTILL_SANITIZE=address;undefined"
	$(BIN)/cmake --build build/sanitize
	$(BIN)/ctest --test-dir build/sanitize --output-on-failure

# libFuzzer needs clang; FUZZ_SECONDS for each target.
fuzz: setup
	$(BIN)/cmake -G Ninja -S csrc -B build/fuzz -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
	  -DCMAKE_CXX_COMPILER=clang++ -DSAMDISTILL_PYTHON=OFF -DSAMDISTILL_FUZZ=ON
	$(BIN)/cmake --build build/fuzz
	for target in build/fuzz/fuzz/fuzz_*; do \
	  test -x $$target -a -f $$target || continue; \
	  mkdir -p build/corpus/$$(basename $$target); \
	  $$target -max_total_time=$(FUZZ_SECONDS) -print_final_stats=1 build/corpus/$$(basename $$target) \
	    2> build/$$(basename $$target).log || { cat build/$$(basename $$target).log; exit 1; }; \
	  grep number_of_executed_units build/$$(basename $$target).log; \
	done

# Instructions of fixed cases, so that a regression shows on a noisy machine (valgrind).
instructions: setup
	$(BIN)/python benchmarks/count_instructions.py --build build/instructions

bench: setup
	$(BIN)/python benchmarks/bench_kernels.py

clean:
	rm -rf build dist demo wheelhouse
