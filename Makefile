# tunjail: `make demo` and `make test` on a fresh Debian 12 with Rust, as root, install what they need by themselves.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS   += --no-print-directory
.DEFAULT_GOAL := build

CARGO   ?= cargo
PREFIX  ?= /usr/local
DESTDIR ?=

# .cargo/config.toml names the host's own tuple as target, so artefacts lie in target/<tuple>/. `sudo make install`
# often has no rustc in its PATH: the machine's name is enough then.
TUPLE      ?= $(or $(CARGO_BUILD_TARGET),$(shell rustc --print host-tuple 2>/dev/null || echo "$$(uname -m)-unknown-linux-gnu"))
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
BIN        := $(TARGET_DIR)/$(TUPLE)/release/tunjail

NEXTEST_VERSION := 0.9.143
DENY_VERSION    := 0.20.2
# CI shows each test as it passes.
NEXTEST_PROFILE ?= $(if $(CI),ci,default)

BINDIR   := $(DESTDIR)$(PREFIX)/bin
SHAREDIR := $(DESTDIR)$(PREFIX)/share/tunjail
DOCDIR   := $(DESTDIR)$(PREFIX)/share/doc/tunjail
HOOKS    := $(wildcard hooks/*)
# Those that name the program.
EXAMPLES := $(wildcard examples/*/*.conf)
DOCS     := README.md CHANGELOG.md SECURITY.md CONTRIBUTING.md LICENSE-MIT LICENSE-APACHE

.PHONY: build demo test check bench install uninstall clean help \
        deps deps-demo deps-bench cargo-nextest cargo-deny root

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

build: ## the release binary, static
	$(CARGO) build --release --locked --bin tunjail
	@if readelf -d '$(BIN)' | grep -q NEEDED; then \
	    echo 'make: $(BIN) is not static: is RUSTFLAGS set? it replaces the flags of .cargo/config.toml' >&2; exit 1; fi

demo: root deps-demo build ## a jailed container, its VPN killed, nothing leaks; under a minute
	TUNJAIL='$(abspath $(BIN))' demo/run

# The doctests come first so that the last lines are the test runner's own summary of everything else.
test: root deps cargo-nextest ## everything, the lab included
	$(CARGO) test --locked --doc
	$(CARGO) nextest run --locked --profile '$(NEXTEST_PROFILE)'

check: cargo-deny ## format, lints, docs, licences
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --no-deps --document-private-items
	$(CARGO) deny --locked check licenses bans sources

# `cargo bench` links the binary again, with the features that the tests want of its dependencies: what is measured is
# a copy of what ships.
bench: root deps-bench build ## how quick, how big, what a packet costs: ratios, never a timed test
	install -m 0755 '$(BIN)' '$(TARGET_DIR)/measured'
	TUNJAIL='$(abspath $(TARGET_DIR)/measured)' $(CARGO) bench --locked --bench hook --bench forward

install: ## into $(DESTDIR)$(PREFIX)
	@if command -v '$(CARGO)' >/dev/null; then $(MAKE) build; else \
	    test -x '$(BIN)' || { echo 'make: no cargo here and no $(BIN): run "make build" first' >&2; exit 1; }; fi
	install -d '$(BINDIR)' '$(SHAREDIR)/hooks' '$(DOCDIR)'
	install -m 0755 '$(BIN)' '$(BINDIR)/tunjail'
	ln -sfn tunjail '$(BINDIR)/tunjail-runtime'
	@for file in $(HOOKS); do \
	    sed 's#/usr/local/#$(PREFIX)/#g' "$$file" >"$(SHAREDIR)/$$file"; chmod 0644 "$(SHAREDIR)/$$file"; done
	install -m 0644 $(wildcard $(DOCS)) '$(DOCDIR)'
	install -d '$(DOCDIR)/docs/decisions' '$(DOCDIR)/examples'
	install -m 0644 docs/*.md '$(DOCDIR)/docs'
	install -m 0644 docs/decisions/*.md '$(DOCDIR)/docs/decisions'
	install -m 0644 examples/*.toml '$(DOCDIR)/examples'
	@for file in $(EXAMPLES); do \
	    sed 's#/usr/local/#$(PREFIX)/#g' "$$file" | install -D -m 0644 /dev/stdin "$(DOCDIR)/$$file"; done

# Podman skips a hook whose binary is gone, without a word: what is wired has to go before the binary does.
WIRED := $(basename $(notdir $(wildcard $(DESTDIR)/var/lib/tunjail/install/*.json)))

uninstall: ## what install put there; configuration stays
	@[ -z '$(WIRED)' ] || { for engine in $(WIRED); do \
	    echo "make: first run: tunjail uninstall $$engine" >&2; done; exit 1; }
	rm -f '$(BINDIR)/tunjail' '$(BINDIR)/tunjail-runtime'
	rm -rf '$(SHAREDIR)' '$(DOCDIR)'

clean: ## the build directory
	$(CARGO) clean

deps: ## Debian packages that the tests need, and the root file systems of other releases
	@scripts/deps test
	@scripts/releases

deps-demo: ## ... that the demo needs
	@scripts/deps demo

deps-bench: ## ... that the benchmark needs
	@scripts/deps bench

cargo-nextest:
	@command -v cargo-nextest >/dev/null || $(CARGO) install --locked cargo-nextest --version $(NEXTEST_VERSION)

cargo-deny:
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked cargo-deny --version $(DENY_VERSION)

root:
	@[ "$$(id -u)" = 0 ] || { \
	    echo 'make: this target makes network namespaces and needs root; it touches none but its own' >&2; exit 1; }
