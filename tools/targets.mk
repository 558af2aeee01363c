# The targets people type.

help:
	@echo "make            build $(BUILD)/lodge (CONFIG=release|debug|asan|tsan)"
	@echo "make run        install what is missing, build, make a Debian guest, boot it"
	@echo "make test       install what tests need, run all of them"
	@echo "make soak       keep the Debian guest under stress-ng (SECONDS=600)"
	@echo "make bench      measure against the bare host and QEMU's TCG (QUICK=1: five minutes)"
	@echo "make deps       install what building, running and testing need"
	@echo "make install    into DESTDIR/PREFIX (default /usr/local)"
	@echo "make check      style: dependency arrows, headers"
	@echo "make clean      remove $(BUILD)"

clean:
	rm -rf $(BUILD)

# Each header must compile alone.
headers:
	@for h in $$(find src -name '*.h'); do \
		$(CC) $(ALL_CFLAGS) -x c -fsyntax-only -Wno-unused-function $$h || exit 1; done

RUN_PACKAGES := gcc make pkg-config libc6-dev libzydis-dev libuv1-dev liburing-dev libslirp-dev \
                libjansson-dev mmdebstrap e2fsprogs zstd
TEST_PACKAGES := $(RUN_PACKAGES) libcmocka-dev python3 python3-pytest python3-pytest-timeout acpica-tools \
                 qemu-system-x86 busybox-static cpio xorriso xz-utils lz4 clang libclang-rt-14-dev \
                 seabios ovmf grub-common grub-pc-bin syslinux syslinux-common mtools

deps:
	@tools/install-packages $(TEST_PACKAGES)

test:
	@tools/install-packages $(TEST_PACKAGES)
	$(MAKE) check
	$(MAKE) -j2 all guests $(BUILD)/insn-diff $(BUILD)/bench/bench
	$(MAKE) -j2 unit CONFIG=asan
	$(MAKE) -j2 fuzz-programs CONFIG=fuzz CC=clang
	/usr/bin/python3 -m pytest -q -p no:cacheprovider --durations=15 tests

# A long run of one target: make fuzz TARGET=pci [SECONDS=600]
fuzz:
	$(MAKE) fuzz-programs CONFIG=fuzz CC=clang
	mkdir -p $(BUILD)/corpus/$(TARGET)
	$(BUILD)/fuzz/$(TARGET)_fuzz -max_total_time=$(or $(SECONDS),600) $(BUILD)/corpus/$(TARGET)

check: headers
	tools/check-layers

GUEST := $(BUILD)/guest/debian

run:
	@tools/install-packages $(RUN_PACKAGES)
	$(MAKE) all
	@tools/guest-image $(GUEST)
	@tools/run-guest

# Not part of `make test`, for its length: make soak [SECONDS=600] [SOAK="--cpus 2 --classes cpu,vm"]
soak:
	@tools/install-packages $(RUN_PACKAGES) python3
	$(MAKE) all
	@tools/guest-image $(GUEST)
	tests/soak/stress.py --seconds $(or $(SECONDS),600) $(SOAK)

PREFIX ?= /usr/local

install: all
	install -D -m 755 $(BUILD)/lodge $(DESTDIR)$(PREFIX)/bin/lodge
	install -D -m 644 docs/man/lodge.1 $(DESTDIR)$(PREFIX)/share/man/man1/lodge.1
	install -D -m 644 tools/completion/lodge.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/lodge

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/lodge $(DESTDIR)$(PREFIX)/share/man/man1/lodge.1 \
	    $(DESTDIR)$(PREFIX)/share/bash-completion/completions/lodge

# QUICK=1: about five minutes, leaves docs/performance.md alone. ARGS goes to bench/run.py (--help tells).
bench:
	@tools/install-packages $(TEST_PACKAGES)
	$(MAKE) -j2 all $(BUILD)/bench/bench
	/usr/bin/python3 bench/run.py $(if $(QUICK),--quick,--docs) $(ARGS)
