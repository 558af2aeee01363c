# How objects, the program and the unit tests are made. Sources are found, not listed.

OBJ := $(BUILD)/obj-$(CONFIG)
ifeq ($(CONFIG),release)
BIN := $(BUILD)
else
BIN := $(BUILD)/$(CONFIG)
endif

SOURCES     := $(shell find src -name '*.c' | sort)
LIB_SOURCES := $(filter-out src/cli/main.c,$(SOURCES))
LIB_OBJECTS := $(LIB_SOURCES:%.c=$(OBJ)/%.o)

Q := $(if $(filter 1,$(V)),,@)

$(OBJ)/src/cpu/soft/%.o: ALL_CFLAGS += $(SOFT_CFLAGS)

$(OBJ)/%.o: %.c
	@mkdir -p $(@D)
	$(if $(Q),@echo "  CC    $<")
	$(Q)$(CCACHE) $(CC) $(ALL_CFLAGS) -MMD -MP -c -o $@ $<

$(OBJ)/liblodge.a: $(LIB_OBJECTS)
	$(Q)rm -f $@ && ar rcs $@ $^

$(BIN)/lodge: $(OBJ)/src/cli/main.o $(OBJ)/liblodge.a
	@mkdir -p $(@D)
	$(if $(Q),@echo "  LINK  $@")
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(LIBS)

UNIT_SOURCES  := $(shell find tests/unit -name '*_test.c' 2>/dev/null | sort)
UNIT_PROGRAMS := $(UNIT_SOURCES:tests/unit/%.c=$(BIN)/unit/%)

# What several unit tests share: the other .c files next to them.
UNIT_SHARED := $(patsubst %.c,$(OBJ)/%.o,$(shell find tests/unit -name '*.c' ! -name '*_test.c' 2>/dev/null | sort))

$(OBJ)/libunit.a: $(UNIT_SHARED)
	@mkdir -p $(@D)
	$(Q)rm -f $@ && ar rcs $@ $^

$(BIN)/unit/%: $(OBJ)/tests/unit/%.o $(OBJ)/libunit.a $(OBJ)/liblodge.a
	@mkdir -p $(@D)
	$(if $(Q),@echo "  LINK  $@")
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(LIBS) -lcmocka

# The differential instruction test against the host CPU.
INSN_OBJECTS := $(patsubst %.c,$(OBJ)/%.o,$(sort $(wildcard tests/insn/*.c)))

$(OBJ)/tests/insn/%.o: ALL_CFLAGS += -I.

$(BIN)/insn-diff: $(INSN_OBJECTS) $(OBJ)/liblodge.a
	@mkdir -p $(@D)
	$(if $(Q),@echo "  LINK  $@")
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(LIBS)

.PHONY: unit
unit: $(UNIT_PROGRAMS)

.PRECIOUS: $(OBJ)/%.o

-include $(shell find $(OBJ) -name '*.d' 2>/dev/null)

.PHONY: lib
lib: $(OBJ)/liblodge.a

# Freestanding guests: multiboot 1 kernels, 64-bit code in a 32-bit ELF as that loader wants it.
GUEST_CFLAGS  := -std=gnu11 -O2 -g -Wall -Wextra -Werror -ffreestanding -fno-pic -fno-pie -mno-red-zone \
                 -mgeneral-regs-only -mcmodel=small -fno-stack-protector -fcf-protection=none \
                 -fno-asynchronous-unwind-tables -Itests/guest/lib
GUEST_OBJ      := $(BUILD)/obj-guest
GUEST_SOURCES  := $(sort $(wildcard tests/guest/*.c))
GUEST_PROGRAMS := $(GUEST_SOURCES:tests/guest/%.c=$(BUILD)/guests/%.elf)
GUEST_LIB      := $(GUEST_OBJ)/lib/start.o $(GUEST_OBJ)/lib/guest.o

$(GUEST_OBJ)/%.o: tests/guest/%.c
	@mkdir -p $(@D)
	$(if $(Q),@echo "  GUEST $<")
	$(Q)$(CC) $(GUEST_CFLAGS) -MMD -MP -c -o $@ $<

$(GUEST_OBJ)/%.o: tests/guest/%.S
	@mkdir -p $(@D)
	$(Q)$(CC) $(GUEST_CFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/guests/%.elf: $(GUEST_OBJ)/%.o $(GUEST_LIB) tests/guest/lib/guest.ld
	@mkdir -p $(@D)
	$(Q)$(CC) -nostdlib -static -no-pie -Wl,--build-id=none,-z,max-page-size=4096,--no-warn-rwx-segments \
		-T tests/guest/lib/guest.ld -o $@.64 $(GUEST_LIB) $<
	$(Q)objcopy -O elf32-i386 $@.64 $@

.PHONY: guests
guests: $(GUEST_PROGRAMS)
.SECONDARY: $(GUEST_PROGRAMS:$(BUILD)/guests/%.elf=$(GUEST_OBJ)/%.o) $(GUEST_LIB)

-include $(shell find $(GUEST_OBJ) -name '*.d' 2>/dev/null)

# Fuzz targets: libFuzzer, so clang: make fuzz-programs CONFIG=fuzz CC=clang (make test does).
FUZZ_SOURCES  := $(shell find tests/fuzz -name '*_fuzz.c' 2>/dev/null | sort)
FUZZ_PROGRAMS := $(FUZZ_SOURCES:tests/fuzz/%.c=$(BIN)/%)

FUZZ_HELPERS  := $(patsubst %.c,$(OBJ)/%.o,$(filter-out $(FUZZ_SOURCES),$(wildcard tests/fuzz/*.c)))

$(BIN)/%_fuzz: $(OBJ)/tests/fuzz/%_fuzz.o $(FUZZ_HELPERS) $(OBJ)/libunit.a $(OBJ)/liblodge.a
	@mkdir -p $(@D)
	$(if $(Q),@echo "  LINK  $@")
	$(Q)$(CC) $(ALL_LDFLAGS) -fsanitize=fuzzer -o $@ $(filter %_fuzz.o,$^) -Wl,--start-group $(filter-out %_fuzz.o,$^) -Wl,--end-group $(LIBS) -lcmocka

.PHONY: fuzz-programs
fuzz-programs: $(FUZZ_PROGRAMS)

# The guest side of the benchmark: one static program that also runs on the host.
BENCH_SOURCES := $(sort $(wildcard bench/guest/*.c))

$(BUILD)/bench/bench: $(BENCH_SOURCES) bench/guest/bench.h
	@mkdir -p $(@D)
	$(if $(Q),@echo "  BENCH $@")
	$(Q)$(CC) -std=gnu11 -D_GNU_SOURCE -O2 $(WARNINGS) -static -pthread -o $@ $(BENCH_SOURCES) -lm
