# Two commands are all a newcomer needs: `make run` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

# What `make test-database` runs; see CONTRIBUTING.md.
MARKS ?= database and not long

# Where `make migration` makes one.
MIGRATIONS ?= sql/migrations

.PHONY: help run setup dev-setup lock hooks check test test-long test-database lint format docs bench bench-queries bench-rollup bench-handlers bench-holds bench-latency bench-profile throughput clean migration

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
	.venv/lock/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	{ echo '# The versions that development and CI use; `make lock` writes this file.'; \
		.venv/lock/bin/pip freeze --exclude-editable; } > constraints.txt
	rm -rf .venv/lock

hooks: dev-setup      ## have git run the quick part of `make lint` before each commit
	$(BIN)/pre-commit install

test: dev-setup tests/node_modules        ## all that matters, against real Postgres servers: under ten minutes
	$(BIN)/python -m pytest -n 3 --dist worksteal

test-long: dev-setup tests/node_modules   ## what `make test` leaves out: more kills, more examples, more cases
	INGEST_TEST_LONG=1 $(BIN)/python -m pytest -n 3 --dist worksteal -m "long or longer"

check: lint           ## what one runs while working: lint, and the tests that start neither a server nor a process
	$(BIN)/python -m pytest -n 2 -m "quick and not long" tests/test_layers.py tests/test_packaging.py tests/docs tests/bench tests/commands/test_command_line.py tests/base tests/events tests/intake tests/http tests/journal

test-database: dev-setup tests/node_modules   ## what concerns the database alone, such as for another server
	$(BIN)/python -m pytest -m "$(MARKS)"

tests/node_modules: tests/package.json
	cd tests && npm install --no-audit --no-fund --silent
	@touch $@

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

bench: dev-setup      ## Locust against a fresh service: 1,000+ events/s, all of them stored once
	$(BIN)/python -m bench.locust_run

bench-queries: dev-setup  ## latency of the promised queries with 10 million events; needs 15 GB of disk
	$(BIN)/python -m bench.queries

bench-rollup: dev-setup   ## whether rollups keep up, and what they cost; the full table needs 30 GB of disk
	$(BIN)/python -m bench.rollup

bench-handlers: dev-setup ## leads, onboarding and experiments, compared with a handler with one query
	$(BIN)/python -m bench.handlers

bench-holds: dev-setup    ## the longest turn of a collector's loop, whatever is sent to it
	$(BIN)/python -m bench.holds

bench-latency: dev-setup  ## acknowledgement at 5 to 110 % of capacity, with the load coming whatever the service does
	$(BIN)/python -m bench.latency

bench-profile: dev-setup  ## where the CPU time of an event goes, by stage; needs py-spy
	$(BIN)/python -m bench.profile

throughput: dev-setup ## events/s against raw COPY, requests/s against bare aiohttp, latency, memory
	$(BIN)/python -m bench.throughput

clean:
	rm -rf .venv tests/node_modules .mypy_cache .ruff_cache .pytest_cache
