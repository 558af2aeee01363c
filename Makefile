# Lodge: the front door. `make` builds build/lodge; `make help` lists the rest.

CC       ?= gcc
BUILD    ?= build
CONFIG   ?= release
V        ?= 0

include tools/config.mk

.PHONY: all run test fuzz soak check bench install uninstall clean help deps headers format

all: $(BUILD)/lodge

include tools/build.mk
include tools/targets.mk
