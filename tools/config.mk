# Compilers, flags and libraries. CONFIG is release, debug, asan, tsan or fuzz (clang).

ifeq ($(origin CC),default)
CC := gcc
endif
CCACHE := $(shell command -v ccache 2>/dev/null)

VERSION := 0.1.0

PACKAGES := zydis libuv liburing slirp jansson
# Zydis has no pkg-config file in Debian 12.
LIBS := -lZydis -luv -luring -lslirp -ljansson -lpthread

PKG_CFLAGS := $(shell pkg-config --cflags slirp jansson libuv liburing 2>/dev/null)

WARNINGS := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wconversion \
            -Wno-sign-conversion -Werror

CFLAGS_release := -O2 -g
CFLAGS_debug   := -O0 -g
CFLAGS_asan    := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
CFLAGS_tsan    := -O1 -g -fsanitize=thread
CFLAGS_fuzz    := -O1 -g -fsanitize=fuzzer-no-link,address,undefined -fno-omit-frame-pointer
LDFLAGS_asan   := -fsanitize=address,undefined
LDFLAGS_fuzz   := -fsanitize=address,undefined
LDFLAGS_tsan   := -fsanitize=thread

# What only one of the two compilers knows.
ifeq ($(findstring clang,$(shell $(CC) --version 2>/dev/null)),)
WARNINGS += -Wno-format-truncation
SOFT_ONLY := -fno-tree-loop-distribute-patterns
else
SOFT_ONLY := -Wno-bitwise-instead-of-logical
endif

ALL_CFLAGS := -std=gnu11 $(CFLAGS_$(CONFIG)) $(WARNINGS) -fno-strict-aliasing -fstack-protector-strong \
              -D_GNU_SOURCE -DLODGE_VERSION='"$(VERSION)"' -Isrc $(PKG_CFLAGS) $(CFLAGS)
ALL_LDFLAGS := $(LDFLAGS_$(CONFIG)) $(LDFLAGS)

# The soft engine keeps the guest's vector registers in the host's (src/cpu/soft/vcpu.h).
# Fuzz targets execute nothing there, and want to know what they reach.
SOFT_PLAIN := $(if $(filter fuzz,$(CONFIG)),-fno-sanitize=address -fno-sanitize=undefined,-fno-sanitize=all)
SOFT_CFLAGS := -mgeneral-regs-only -fno-builtin -fno-stack-protector $(SOFT_PLAIN) $(SOFT_ONLY)
