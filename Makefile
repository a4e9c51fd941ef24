# The commands for developers. Each target first installs the packages it needs, pinned and verified by hash, into a virtual
# environment in .venv. No Python package is installed outside it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes

# Tests start hundreds of Python processes. If none may keep compiled modules, each compiles all of them again
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help venv dev tools test test-locks test-containers image containers chaos kill soak clients brokers check check-code check-types check-docs docs site format bench bench-check lock clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(VENV)/.run: requirements/run.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' || \
	  { echo "callboard needs Python 3.11 to 3.14, and $(PYTHON) is another version: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "could not create a virtual environment (Debian: apt-get install python3-venv)"; exit 2; }
	@echo "installing the requirements into $(VENV) (once)"
	@$(PIP) -r requirements/run.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.test: requirements/test.txt $(VENV)/.run
	@echo "installing the test and lint tools into $(VENV) (once)"
	@$(PIP) -r requirements/test.txt
	@touch $@

venv: $(VENV)/.test  ## create the virtual environment with all test and lint tools

dev: $(VENV)/.run  ## run the whole system in one process at http://127.0.0.1:8000
	@exec $(BIN)/callboard dev $(ARGS)

# The programs that the tests use besides Python. Debian installs the broker in /usr/sbin, Homebrew in its own sbin
# The MQTT transport is also tested on ejabberd, where that can be installed
SECOND_BROKER := $(shell command -v apt-get >/dev/null && echo ejabberdctl)
BROWSER := $(shell command -v brew >/dev/null && echo google-chrome || echo chromium)
POSTGRES := $(shell command -v brew >/dev/null && echo postgresql@17 || echo postgresql)
MISSING := PATH="$$PATH:/usr/sbin:/opt/homebrew/sbin:/usr/local/sbin:$$(echo /usr/lib/postgresql/*/bin /opt/homebrew/opt/postgresql*/bin | tr ' ' :)"; \
  { for tool in mosquitto curl ps initdb pgbouncer promtool $(SECOND_BROKER); do command -v $$tool >/dev/null || echo $$tool; done; \
  command -v chromium >/dev/null || command -v google-chrome >/dev/null || test -d "/Applications/Google Chrome.app" || echo $(BROWSER); } \
  | sed 's/^ps$$/procps/; s/^ejabberdctl$$/ejabberd/; s/^initdb$$/$(POSTGRES)/; s/^promtool$$/prometheus/'

tools:
	@test -n "$(SECOND_BROKER)" || echo "there is no ejabberd on this system: the MQTT tests use mosquitto only"
	@missing=$$(echo $$($(MISSING))); test -z "$$missing" || { echo "installing the programs that the tests use: $$missing (once)"; \
	  if command -v brew >/dev/null; then brew install --quiet $$missing; \
	  elif ! command -v apt-get >/dev/null; then false; \
	  elif [ "$$(id -u)" = 0 ]; then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing >/dev/null; \
	  elif command -v sudo >/dev/null; then sudo apt-get update -qq && sudo DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing >/dev/null; \
	  else false; fi && test -z "$$($(MISSING))"; } || { echo "the tests need $$missing, which could not be installed (Debian: apt-get install $$missing; macOS: brew install $$missing)"; exit 2; }

# Thousands of tests make databases. A disk that is slow to write would make them late, so they are in memory where 3 GB of it are free
IN_MEMORY := $(shell grep -qs ' /dev/shm .*noexec' /proc/mounts || df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 && $$4 > 3000000 {print "TMPDIR=/dev/shm"}')

test: $(VENV)/.test tools  ## run all tests, in three processes, because many of them wait
	@$(IN_MEMORY) $(BIN)/python -m pytest -n 3 --dist worksteal $(ARGS)

chaos: $(VENV)/.test tools  ## real processes under faults that SEEDS ("1 2 3") choose, and an account of every answer
	@$(BIN)/python -m tests.chaos --seeds "$(or $(SEEDS),1 2 3)" $(ARGS)

kill: $(VENV)/.test  ## kill the system fifty times under load and check every account
	@$(BIN)/python -m pytest -s tests/system/test_kill.py --kills $(or $(KILLS),50) $(ARGS)

soak: $(VENV)/.test tools  ## run the system under load for MINUTES (30), with two deployments and the clock set back
	@MINUTES=$(or $(MINUTES),30) $(BIN)/python -m tests.soak

containers: $(VENV)/.run  ## create certificates, keys, and passwords for containers/compose.yaml
	@$(BIN)/callboard provision containers/secrets
	@chmod 644 containers/mosquitto/mosquitto.conf
	@echo "start it with: docker compose -f containers/compose.yaml up --build     (then open http://127.0.0.1:8000/docs)"

test-containers: $(VENV)/.test  ## test the system in real containers, with docker or podman
	@.ci/engine >/dev/null
	@$(BIN)/python -m pytest -s tests/containers --containers $(ARGS)

image: $(VENV)/.test
	@.ci/engine >/dev/null
	@$(BIN)/python -c "import asyncio; from tests.containers.engine import build; asyncio.run(build())"

test-locks: $(VENV)/.test  ## resolve every lock file with the oldest and the newest pip
	@$(BIN)/python -m pytest -n 2 tests/config/test_locks.py --locks $(ARGS)

clients: $(VENV)/.test tools  ## run the clients of docs/clients.md and docs/generated-clients.md (Debian, as root)
	@command -v npm >/dev/null || $(APT) npm >/dev/null
	@command -v mosquitto_rr >/dev/null || $(APT) mosquitto-clients >/dev/null
	@$(BIN)/python -m pytest tests/docs/test_clients.py tests/generators --clients $(ARGS)

APT := DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends

# Libraries of RabbitMQ, whose package is only unpacked, so that no broker is installed as a service
ERLANG := erlang-base erlang-crypto erlang-eldap erlang-inets erlang-mnesia erlang-os-mon erlang-parsetools erlang-public-key \
  erlang-runtime-tools erlang-ssl erlang-syntax-tools erlang-tools erlang-xmerl

brokers: $(VENV)/.test tools  ## run the conformance kit on every broker that packages offer, and fill docs/brokers.md (Debian, as root)
	@command -v npm >/dev/null || $(APT) npm >/dev/null
	@$(APT) $(ERLANG) >/dev/null
	@$(BIN)/python -m tests.brokers docs/brokers.md $(ARGS)

check: check-code check-types check-docs  ## check lint, format, types, imports, declared dependencies, and the documentation

check-code: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/deptry .
	$(BIN)/mypy

check-types: $(VENV)/.test
	$(BIN)/pyright
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/pyright --verifytypes runtime --ignoreexternal

# Material for MkDocs advertises its successor at every build, unless this is set. The build needs no network: docs/hooks.py checks that
# the site loads nothing from elsewhere
check-docs: $(VENV)/.test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

site: check-docs  ## build the documentation as a website, with the reference of the API
	@echo "open .site/index.html"

docs: $(VENV)/.run  ## update what is generated in docs/: the references of settings and messages, the picture of the system
	@$(BIN)/python -m config.reference docs/operations.md
	@$(BIN)/python -m config.message_reference docs/messages.md
	@$(BIN)/callboard map --format svg > docs/images/system.svg

format: $(VENV)/.test  ## format the code and fix lint errors where possible
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.test tools  ## measure, compare with other frameworks, and fill docs/performance.md (BASE: a checkout to compare with)
	@$(BIN)/python -m tests.bench $(if $(BASE),--base $(BASE)) $(ARGS)

bench-check: $(VENV)/.test tools  ## compare our CPU time with Python's own ceilings, against the ratios in docs/performance.json
	@$(BIN)/python -m tests.bench.check $(ARGS)

LOCK := uv pip compile --quiet --universal --python-version 3.11 --no-strip-extras --generate-hashes --no-emit-index-url \
  --no-emit-find-links --custom-compile-command "make lock" pyproject.toml

lock:  ## update the pinned requirements (needs uv)
	$(LOCK) --extra dev -o requirements/run.txt
	$(LOCK) --extra image -c requirements/run.txt -o requirements/image.txt
	uv pip compile --quiet --universal --python-version 3.11 --no-strip-extras --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --custom-compile-command "make lock" requirements/build.in -c requirements/run.txt -o requirements/build.txt
	$(LOCK) --all-extras -c requirements/run.txt -o requirements/test.txt

.PHONY: findings
findings:  ## run every script in findings/, outside CI: do outside packages still behave as described?
	@failed=; found=; for script in findings/*.sh; do \
	  test -e "$$script" || continue; found=yes; echo "== $$script"; "./$$script" || failed="$$failed $$script"; done; \
	test -n "$$found" || echo "there are no findings"; test -z "$$failed" || { echo "no longer as described:$$failed"; exit 1; }

clean:
	rm -rf $(VENV) .callboard .site
