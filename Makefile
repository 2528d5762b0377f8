# Targets for people. `make demo` and `make test` set up what they need; see README.md.

SHELL       := /bin/bash
GO          ?= go
export CGO_ENABLED ?= 0
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS     := -s -w -X main.version=$(VERSION)
BIN         := bin
# The race detector needs cgo (CGO_ENABLED=1 below), for the test binaries only; what ships stays static. SQLite itself is
# C translated to Go: watching each of its reads and writes makes it eight times slower and finds nothing of ours. So that
# and its C library go without; the driver around it is watched. `make lint` vets everything.
RACE        := -race -vet=off -ldflags='-s -w' $(foreach p,sqlite/lib libc memory,-gcflags=modernc.org/$(p)=-race=false)
# One package more than there are processors: many wait, for Slurm, for deadlines, for processes to end.
TEST_FLAGS  ?= $(RACE) -timeout 20m -p $(shell expr $$(nproc) + 1)
FUZZ_TIME   ?= 2s

.PHONY: build demo demo-clean test unit e2e outages controls fuzz fuzz-long lint fmt generate bench setup clean

build: ## build the three programs into bin/
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/...

setup: ## install what the tests and the demo use (as root), or say what is missing
	@scripts/setup

demo: setup build ## run Core's simulator, gateway and server; Ctrl-C stops it. SLURM=1: with the Slurm of scripts/slurm
	@$(if $(SLURM),scripts/slurm/start)
	@$(BIN)/ucloud-dev demo $(DEMO_FLAGS)

demo-clean: build ## remove what the demo created
	@$(BIN)/ucloud-dev demo-clean

test: setup build ## everything, with the Slurm of scripts/slurm, which is stopped in the end in any case
	@trap 'scripts/slurm/stop || true' EXIT; \
	for part in unit e2e fuzz; do make --no-print-directory $$part || exit; done

unit:
	@CGO_ENABLED=1 scripts/run-tests ./internal/... ./cmd/... -- $(TEST_FLAGS)

e2e: build ## the whole chain; what only prints figures is kept short, as in BENCH_QUICK=1 make bench
	@BENCH_QUICK=1 CGO_ENABLED=1 scripts/run-tests ./test/... -- $(RACE) -count=1 -timeout 30m -tags e2e

outages: build ## end-to-end tests that stop daemons of Slurm for minutes; not part of test
	CGO_ENABLED=1 $(GO) test $(RACE) -count=1 -timeout 30m -tags e2e,outages -run Outages ./test/...

controls: ## take out each control that a test names, and demand that the test fails; ONLY=regexp SHARD=i/n
	@ONLY='$(ONLY)' SHARD='$(or $(SHARD),1/1)' scripts/controls

fuzz: ## run each fuzz target for FUZZ_TIME, with one worker
	@scripts/fuzz $(FUZZ_TIME)

fuzz-long: ## run each fuzz target for a minute of CPU time, and check its memory; ONLY=regexp; not part of test
	@ONLY='$(ONLY)' scripts/fuzz-long

lint: ## vet, staticcheck, gofumpt, generated files
	$(GO) vet ./...
	$(GO) vet -tags e2e ./test/...
	$(GO) tool staticcheck -tags e2e ./...
	@out=$$($(GO) tool gofumpt -l cmd internal test); if [ -n "$$out" ]; then echo "not gofumpt clean:"; echo "$$out"; exit 1; fi
	$(GO) mod verify
	@scripts/check-tree

fmt:
	$(GO) tool gofumpt -w cmd internal test

bench: setup build ## print measured figures beside the targets of docs/benchmarks.md
	@scripts/bench

clean:
	rm -rf $(BIN)
