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

$(BIN)/unit/%: $(OBJ)/tests/unit/%.o $(OBJ)/liblodge.a
	@mkdir -p $(@D)
	$(if $(Q),@echo "  LINK  $@")
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(LIBS) -lcmocka

.PHONY: unit
unit: $(UNIT_PROGRAMS)

.PRECIOUS: $(OBJ)/%.o

-include $(shell find $(OBJ) -name '*.d' 2>/dev/null)

.PHONY: lib
lib: $(OBJ)/liblodge.a
