# nbd-mirror: `make help` lists what can be made.

# Debian packages: what links a Rust program, and what the tests and the benchmark run besides.
LINKER_PACKAGES = gcc libc6-dev
TEST_PACKAGES = e2fsprogs fio libnbd-bin mount nbd-client nbdkit python3 python3-libnbd qemu-utils util-linux
VM_PACKAGES = busybox-static cpio file iproute2 kmod python3-venv
# Boots a kernel with this machine's files as its root.
VIRTME = virtme-ng==1.42
VM = target/vm

FUZZ_TARGETS = nbd_negotiation nbd_requests replication journal_recovery core_events
FUZZ_SECONDS ?= 60
# No sanitizer: what is fuzzed has no `unsafe`, and a stable toolchain is enough.
FUZZ = $(CARGO) fuzz
FUZZ_OPTIONS = --sanitizer none

PREFIX ?= /usr/local
BINDIR = $(PREFIX)/bin
DOCDIR = $(PREFIX)/share/doc/nbd-mirror
UNITDIR = $(PREFIX)/lib/systemd/system

# The benchmark and `install` look for the program here, whatever the environment says.
export CARGO_TARGET_DIR = $(CURDIR)/target
PROGRAM = target/release/nbd-mirror
CARGO = cargo

# Where only root may go, a plain user has to be told so: mkfs and losetup are there.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

# Installs those of the packages $(1) that are missing; asks for a password only then.
install_missing = \
	missing=; \
	for package in $(1); do \
		dpkg-query -W -f '$${db:Status-Status}' "$$package" 2>/dev/null | grep -qx installed \
			|| missing="$$missing $$package"; \
	done; \
	[ -n "$$missing" ] || exit 0; \
	command -v apt-get >/dev/null || { \
		echo "This is no Debian: please install what Debian calls$$missing" >&2; exit 1; }; \
	echo "Installing$$missing"; \
	if [ "$$(id -u)" -eq 0 ]; then as_root=; else as_root=sudo; fi; \
	$$as_root apt-get -q update \
		&& $$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends $$missing

.NOTPARALLEL:
.PHONY: help demo build test test-vm vm-deps vm-qemu sim fuzz-smoke lint bench fmt clean install deps linker rust components cargo-fuzz

help:
	@echo 'make demo     a failover on this machine, with a check of every answered write (no root)'
	@echo 'make test     lint, build and run all tests; installs missing Debian packages'
	@echo 'make test-vm  tests with real kernels in virtual machines; VM_TESTS="name …" for some of them'
	@echo 'make sim      both cores in a world of crashes and faults; SEEDS=100000 FROM=7 for more, SEED=7 for one'
	@echo 'make lint     formatting, clippy and the documentation, all without a warning'
	@echo 'make fuzz-smoke  fuzz each target for FUZZ_SECONDS ($(FUZZ_SECONDS)); installs cargo-fuzz where it is missing'
	@echo 'make bench    measure against other systems; writes bench/results/ and docs/performance.md'
	@echo 'make build    build $(PROGRAM)'
	@echo 'make install  put program, systemd units and examples below $$DESTDIR$$PREFIX ($(PREFIX))'
	@echo 'make deps     install the Debian packages that test and bench need'
	@echo 'make fmt      format the source'
	@echo 'make clean    remove everything that was built'

demo: build
	@$(PROGRAM) demo

build: linker
	@$(CARGO) build --release --locked

test: deps lint build
	@if [ "$$(id -u)" -ne 0 ] && [ -z "$$NBD_MIRROR_SKIP_ROOT" ]; then \
		echo 'Not root: the tests that need loop devices and mounts are left out.'; \
		export NBD_MIRROR_SKIP_ROOT=1; \
	fi; \
	$(CARGO) test --release --locked
	@$(MAKE) --no-print-directory sim
	@cd bench && python3 -m unittest discover
	@if $(MAKE) --no-print-directory vm-deps; then \
		exec $(MAKE) --no-print-directory test-vm; \
	elif [ -n "$$NBD_MIRROR_REQUIRE_VM" ]; then \
		echo 'NBD_MIRROR_REQUIRE_VM is set, but no virtual machine can be had: failed' >&2; exit 1; \
	fi; \
	echo '******************************************************************' >&2; \
	echo 'VM TESTS ARE LEFT OUT: QEMU or a kernel can not be had (see above)' >&2; \
	echo '******************************************************************' >&2

# Real kernels, each booted in QEMU. NBD_MIRROR_VM_KERNEL=6.12 takes only those whose release contains that,
# NBD_MIRROR_VM_KVM=1 uses hardware virtualisation.
test-vm: vm-deps build
	@tests/vm/run.py $(VM_TESTS)

# QEMU by apt-get; the rest goes below $(VM): no kernel is installed on this machine.
vm-deps: deps vm-qemu
	@$(call install_missing,$(VM_PACKAGES))
	@[ -e $(VM)/venv/complete ] || { \
		rm -rf $(VM)/venv && /usr/bin/python3 -m venv $(VM)/venv && $(VM)/venv/bin/pip -q install $(VIRTME) \
			&& touch $(VM)/venv/complete; }
	@tests/vm/kernels.sh $(VM)/kernels

# It conflicts with a qemu-utils of another version, which may be installed from elsewhere.
vm-qemu:
	@command -v qemu-system-x86_64 >/dev/null && exit 0; \
	[ "$$(uname -m)" = x86_64 ] || { echo 'VM tests are written for x86_64' >&2; exit 1; }; \
	command -v apt-get >/dev/null || { echo 'This is no Debian: please install QEMU for x86_64' >&2; exit 1; }; \
	if [ "$$(id -u)" -eq 0 ]; then as_root=; else as_root=sudo; fi; \
	$$as_root apt-get -q update; \
	version=$$(apt-cache policy qemu-system-x86 | sed -n 's/^ *Candidate: //p'); \
	$$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends --allow-downgrades \
		qemu-system-x86 qemu-utils="$$version"

# SEED=n replays one seed with its trace; SEEDS=count and FROM=n run others than the usual ones.
sim: linker
	$(CARGO) test --release --locked --features canary --test sim -- --nocapture $(if $(SEED),every_seed)

lint: linker components
	$(CARGO) fmt --check
	$(CARGO) fmt --check --manifest-path fuzz/Cargo.toml
	$(CARGO) clippy --locked --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --locked --no-deps

bench: deps build
	@$(CARGO) build --release --locked --example pingpong
	@python3 bench/run.py $(BENCH_OPTIONS)

# What is found is kept in fuzz/artifacts/, and its path is the last thing said.
fuzz-smoke: linker cargo-fuzz
	$(CARGO) clippy --locked --all-targets --manifest-path fuzz/Cargo.toml -- -D warnings
	@for target in $(FUZZ_TARGETS); do \
		mkdir -p fuzz/corpus/$$target; \
		$(FUZZ) run $(FUZZ_OPTIONS) $$target fuzz/corpus/$$target fuzz/seeds/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -max_len=16384 -timeout=30 -print_final_stats=1 || exit 1; \
	done

cargo-fuzz: rust
	@$(FUZZ) --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-fuzz

fmt: components
	@$(CARGO) fmt
	@$(CARGO) fmt --manifest-path fuzz/Cargo.toml

clean: rust
	@$(CARGO) clean
	@rm -rf bench/results

# Builds only what isn't there, so that `make build && sudo make install` needs no Rust for root.
$(PROGRAM):
	@$(MAKE) build

install: $(PROGRAM)
	install -D -m 755 $(PROGRAM) $(DESTDIR)$(BINDIR)/nbd-mirror
	install -d $(DESTDIR)$(UNITDIR) $(DESTDIR)$(DOCDIR)/examples
	for unit in systemd/*.service; do \
		sed 's|/usr/local/bin/|$(BINDIR)/|' "$$unit" >$(DESTDIR)$(UNITDIR)/"$${unit#systemd/}" || exit 1; \
		chmod 644 $(DESTDIR)$(UNITDIR)/"$${unit#systemd/}"; \
	done
	install -m 644 examples/*.toml $(DESTDIR)$(DOCDIR)/examples
	install -m 644 README.md LICENSE-MIT LICENSE-APACHE $(DESTDIR)$(DOCDIR)

deps:
	@$(call install_missing,$(TEST_PACKAGES))

linker: rust
	@command -v cc >/dev/null || { $(call install_missing,$(LINKER_PACKAGES)); }

rust:
	@command -v $(CARGO) >/dev/null || { \
		echo 'cargo is not found: install Rust 1.88 or newer with rustup (Debian 12 has an older one)' >&2; \
		exit 1; }

components: rust
	@$(CARGO) fmt --version >/dev/null 2>&1 || rustup component add rustfmt
	@$(CARGO) clippy --version >/dev/null 2>&1 || rustup component add clippy
