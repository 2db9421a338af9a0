# scstore. `make help` lists the targets; .ci/run calls `make ci` and nothing else.
SHELL       := bash
.SHELLFLAGS := -eu -o pipefail -c
GO          ?= go
TOOL        := $(GO) tool -modfile=internal/tools/go.mod
PKGS        ?= ./...
FUZZTIME    ?= 5s
SOAK        ?= 60m
SEEDS       ?= 20000
SEED        ?= 0
LDFLAGS     := -s -w -X main.commit=$(shell git rev-parse --short HEAD 2>/dev/null || echo unknown)

.PHONY: help
help: ## list targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

.PHONY: build
build: ## static binary bin/scstore
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/scstore ./cmd/scstore

.PHONY: fmt
fmt: ## rewrite formatting and modern idioms
	$(TOOL) golangci-lint fmt
	$(GO) fix $(PKGS)

.PHONY: lint
lint: ## vet, golangci-lint, go fix -diff, go mod tidy -diff
	$(GO) vet $(PKGS)
	$(GO) vet -tags invariants,soak,failpoints $(PKGS)
	$(TOOL) golangci-lint run $(PKGS)
	$(GO) fix -diff $(PKGS)
	$(GO) mod tidy -diff

.PHONY: test
test: ## every test, none skipped; installs the tools that they drive
	scripts/install-tools
	scripts/gotest -shuffle=on -timeout=14m $(PKGS)

.PHONY: race
race: ## unit tests under the race detector with the costly invariants
	CGO_ENABLED=1 scripts/gotest -race -tags=invariants -shuffle=on -timeout=20m $$($(GO) list $(PKGS) | grep -vE '/(e2e|cmd/scstore)$$')

.PHONY: sim
sim: ## simulated worlds: SEEDS of them, or the one of SEED, line by line
	$(GO) test ./sim -count=1 -v -run Promises -sim.seeds=$(SEEDS) -sim.seed=$(SEED) -timeout=60m

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME
	scripts/fuzz $(FUZZTIME) $(PKGS)

.PHONY: e2e
e2e: build ## the tests that drive a whole host with qemu, libnbd and fio
	scripts/install-tools
	scripts/gotest -count=1 -timeout=14m ./e2e/... ./cmd/...

.PHONY: soak
soak: ## the long tests (build tag soak), SOAK at most
	scripts/install-tools
	scripts/gotest -tags=soak,invariants,failpoints -count=1 -timeout=$(SOAK) $(PKGS)

.PHONY: bench
bench: build ## measure against the peers on this machine, as a table
	scripts/install-tools
	bin/scstore bench

.PHONY: demo
demo: ## a tour: a guest survives kill -9 of its host, then its disk moves around three sites
	scripts/demo

.PHONY: golden
golden: ## rewrite the golden files and show the difference
	$(GO) test ./consensus/... -run Golden -rewrite
	git diff --stat -- '*/testdata/golden/*'

.PHONY: vuln
vuln: ## known weaknesses of the dependencies; needs a network, gates nothing
	$(GO) run golang.org/x/vuln/cmd/govulncheck@v1.9.0 $(PKGS)

.PHONY: clean
clean: ## remove what was built
	rm -rf bin build

.PHONY: ci
ci: lint build test race fuzz ## everything that gates a change
