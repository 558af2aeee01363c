/* The UART, the keyboard controller and the debug exit port, on a clock that the test moves. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "../chip/fake_time.h"
#include "device/debug_exit.h"
#include "device/i8042.h"
#include "device/uart16550.h"

#define COM1 0x3f8u

struct fixture {
    struct machine *machine;
    struct uart16550 *uart;
    int level[16];
    uint8_t sent[64];
    size_t sent_len;
    unsigned rooms;
    unsigned requests[4];
    int code;
};

static void line_set(void *opaque, unsigned number, int level)
{
    ((struct fixture *)opaque)->level[number] = level;
}

static void requested(void *opaque, enum machine_request what, int code, const char *reason)
{
    struct fixture *f = opaque;

    (void)reason;
    f->requests[what]++;
    f->code = code;
}

static void output(void *opaque, const uint8_t *bytes, size_t len)
{
    struct fixture *f = opaque;

    assert_true(f->sent_len + len <= sizeof(f->sent));
    memcpy(f->sent + f->sent_len, bytes, len);
    f->sent_len += len;
}

static void room(void *opaque)
{
    ((struct fixture *)opaque)->rooms++;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct uart16550_sink sink = {.output = output, .input_room = room, .opaque = f};
    struct irq_line irq = {.set = line_set, .opaque = f, .number = 4};
    struct irq_line irq1 = {.set = line_set, .opaque = f, .number = 1};
    struct irq_line irq12 = {.set = line_set, .opaque = f, .number = 12};

    assert_int_equal(machine_create(&f->machine), 0);
    f->machine->request = requested;
    f->machine->request_opaque = f;
    assert_int_equal(uart16550_create(f->machine, COM1, irq, &sink, "serial0", &f->uart), 0);
    assert_int_equal(i8042_create(f->machine, irq1, irq12), 0);
    assert_int_equal(debug_exit_create(f->machine), 0);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    machine_destroy(f->machine);
    free(f);
    return 0;
}

static void out(struct fixture *f, uint16_t port, uint8_t value)
{
    bus_write(f->machine->bus, BUS_PORT, port, 1, value);
}

static uint8_t in(struct fixture *f, uint16_t port)
{
    return (uint8_t)bus_read(f->machine->bus, BUS_PORT, port, 1);
}

static struct device *uart_device(struct fixture *f)
{
    struct device *dev = f->machine->devices;

    while (strcmp(dev->name, "serial0") != 0)
        dev = dev->next;
    return dev;
}

static void test_uart_sends(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(in(f, COM1 + 5), 0x60);
    out(f, COM1, 'h');
    out(f, COM1, 'i');
    assert_int_equal(f->sent_len, 2);
    assert_memory_equal(f->sent, "hi", 2);
    out(f, COM1 + 3, 0x83); /* DLAB */
    out(f, COM1, 12);
    out(f, COM1 + 1, 3);
    assert_int_equal(in(f, COM1), 12);
    assert_int_equal(in(f, COM1 + 1), 3);
    out(f, COM1 + 3, 3);
    assert_int_equal(f->sent_len, 2);
    assert_int_equal(in(f, COM1 + 1), 0); /* IER */
}

static void test_uart_thre_interrupt(void **state)
{
    struct fixture *f = *state;

    out(f, COM1 + 4, 8);
    out(f, COM1 + 1, 2);
    assert_int_equal(f->level[4], 1);
    assert_int_equal(in(f, COM1 + 2), 0x02);
    assert_int_equal(f->level[4], 0); /* reading IIR takes it back */
    assert_int_equal(in(f, COM1 + 2), 0x01);
    out(f, COM1, 'x');
    assert_int_equal(f->level[4], 1);
    out(f, COM1 + 4, 0); /* OUT2 gates the line */
    assert_int_equal(f->level[4], 0);
}

static void test_uart_fifo_and_timeout(void **state)
{
    struct fixture *f = *state;
    uint8_t bytes[40];

    for (unsigned i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(i + 1);
    out(f, COM1 + 4, 8);
    out(f, COM1 + 2, 0x81); /* FIFO, trigger at 8 */
    out(f, COM1 + 1, 1);
    assert_int_equal(uart16550_input(f->uart, bytes, 3), 3);
    assert_int_equal(f->level[4], 0);
    assert_int_equal(in(f, COM1 + 5) & 1, 1);
    fake_time_pass(400 * NSEC_PER_USEC); /* four characters at 115200 baud: 347 us */
    assert_int_equal(f->level[4], 1);
    assert_int_equal(in(f, COM1 + 2), 0xcc);
    assert_int_equal(in(f, COM1), 1);
    assert_int_equal(f->level[4], 0);
    assert_int_equal(uart16550_input(f->uart, bytes + 3, 6), 6);
    assert_int_equal(in(f, COM1 + 2), 0xc4);
    assert_int_equal(uart16550_input(f->uart, bytes + 9, 31), 31); /* more than the FIFO holds */
    for (unsigned i = 1; i < 40; i++) {
        assert_int_equal(in(f, COM1 + 5), 0x61); /* and none of it is an overrun */
        assert_int_equal(f->level[4], i <= 32); /* eight are there */
        assert_int_equal(in(f, COM1), i + 1);
    }
    assert_int_equal(in(f, COM1 + 5), 0x60);
    fake_time_pass(NSEC_PER_SEC);
    assert_int_equal(f->level[4], 0);
    assert_int_equal(f->rooms, 0); /* it had no more to send */
}

static void test_uart_no_fifo(void **state)
{
    struct fixture *f = *state;

    out(f, COM1 + 4, 8);
    out(f, COM1 + 1, 1);
    assert_int_equal(uart16550_input(f->uart, (const uint8_t *)"ab", 2), 2);
    assert_int_equal(in(f, COM1 + 2), 0x04);
    assert_int_equal(in(f, COM1), 'a');
    assert_int_equal(f->level[4], 1);
    assert_int_equal(in(f, COM1 + 5), 0x61);
    assert_int_equal(in(f, COM1), 'b');
    assert_int_equal(f->level[4], 0);
    assert_int_equal(in(f, COM1 + 5), 0x60);
    assert_int_equal(in(f, COM1), 0);
}

static void test_uart_calls_for_more_when_little_is_left(void **state)
{
    struct fixture *f = *state;
    uint8_t bytes[300];

    for (unsigned i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(i * 7);
    out(f, COM1 + 2, 0x81);
    assert_int_equal(uart16550_input(f->uart, bytes, 300), 272); /* 16 in the FIFO, 256 behind */
    for (unsigned i = 0; i < 272; i++) {
        assert_int_equal(f->rooms, i >= 192); /* once, when 64 are left behind */
        assert_int_equal(in(f, COM1), bytes[i]);
    }
    assert_int_equal(f->rooms, 1);
    assert_int_equal(uart16550_input(f->uart, bytes + 272, 28), 28);
    for (unsigned i = 272; i < 300; i++)
        assert_int_equal(in(f, COM1), bytes[i]);
    assert_int_equal(f->rooms, 1);
}

/* What is on the line is not in the chip. */
static void test_uart_clears_only_what_came(void **state)
{
    struct fixture *f = *state;
    uint8_t bytes[24] = {0};

    for (unsigned i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(i + 1);
    out(f, COM1 + 4, 8);
    out(f, COM1 + 2, 0x01);
    out(f, COM1 + 1, 1);
    assert_int_equal(uart16550_input(f->uart, bytes, 22), 22);
    out(f, COM1 + 2, 0x03); /* the sixteen in the FIFO */
    out(f, COM1 + 2, 0x00); /* nothing has come since */
    assert_int_equal(in(f, COM1 + 5), 0x60);
    assert_int_equal(in(f, COM1), 0);
    assert_int_equal(f->level[4], 0);
    assert_int_equal(uart16550_input(f->uart, bytes + 22, 2), 2); /* in order: after the others */
    assert_int_equal(in(f, COM1 + 5), 0x60);
    for (unsigned i = 0; i < 10; i++) { /* writes that do not concern the receiver do not delay it */
        fake_time_pass(9 * NSEC_PER_USEC);
        out(f, COM1 + 1, i & 1 ? 1 : 3);
    }
    assert_int_equal(in(f, COM1 + 2), 0x04);
    for (unsigned i = 16; i < 20; i++)
        assert_int_equal(in(f, COM1), i + 1);
    uart_device(f)->ops->reset(uart_device(f));
    assert_int_equal(in(f, COM1 + 5), 0x60);
    fake_time_pass(100 * NSEC_PER_USEC);
    for (unsigned i = 21; i < 24; i++)
        assert_int_equal(in(f, COM1), i + 1);
    assert_int_equal(in(f, COM1 + 5), 0x60);
}

static void test_uart_saves_the_line(void **state)
{
    struct fixture *f = *state;
    struct device *dev = uart_device(f);
    struct error err = {0};
    struct state_buf buf;
    uint8_t bytes[300];
    size_t pos = 0;

    for (unsigned i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(i * 3);
    assert_int_equal(uart16550_input(f->uart, bytes, 100), 100);
    for (unsigned i = 0; i < 90; i++)
        assert_int_equal(in(f, COM1), bytes[i]);
    assert_int_equal(uart16550_input(f->uart, bytes + 100, 200), 200); /* round the ring's end */
    state_buf_init(&buf);
    assert_int_equal(state_save(&buf, dev->ops->state, dev->name, dev), 0);
    for (unsigned i = 90; i < 300; i++)
        assert_int_equal(in(f, COM1), bytes[i]);
    assert_int_equal(state_load(buf.data, buf.len, &pos, dev->ops->state, dev->name, dev, &err), 0);
    f->rooms = 0;
    assert_int_equal(dev->ops->loaded(dev), 0);
    for (unsigned i = 90; i < 300; i++) {
        assert_int_equal(f->rooms, i >= 300 - 64 - 1); /* the new sender, too, is called */
        assert_int_equal(in(f, COM1), bytes[i]);
    }
    assert_int_equal(in(f, COM1 + 5), 0x60);
    memset(buf.data + buf.len - 2, 0xff, 2); /* more than the line holds */
    pos = 0;
    assert_int_equal(state_load(buf.data, buf.len, &pos, dev->ops->state, dev->name, dev, &err), 0);
    assert_int_equal(dev->ops->loaded(dev), -EINVAL);
    dev->ops->reset(dev);
    state_buf_release(&buf);
}

static void test_uart_loopback(void **state)
{
    struct fixture *f = *state;

    out(f, COM1 + 4, 0x1a); /* loop, OUT2, RTS */
    assert_int_equal(in(f, COM1 + 6) >> 4, 0x9);
    out(f, COM1, 0x5a);
    assert_int_equal(f->sent_len, 0);
    assert_int_equal(in(f, COM1), 0x5a);
    out(f, COM1, 1);
    out(f, COM1, 2); /* overrun */
    assert_int_equal(in(f, COM1 + 5) & 3, 3);
    assert_int_equal(in(f, COM1 + 5) & 2, 0);
    assert_int_equal(in(f, COM1), 2);
    assert_int_equal(uart16550_input(f->uart, (const uint8_t *)"a", 1), 0);
    out(f, COM1 + 4, 8);
    assert_int_equal(in(f, COM1 + 6) & 0xf0, 0xb0);
    assert_int_equal(f->rooms, 1);
    assert_int_equal(uart16550_input(f->uart, (const uint8_t *)"a", 1), 1);
}

static void test_uart_loopback_holds_the_line(void **state)
{
    struct fixture *f = *state;

    out(f, COM1 + 4, 8);
    out(f, COM1 + 1, 1);
    assert_int_equal(uart16550_input(f->uart, (const uint8_t *)"abc", 3), 3);
    out(f, COM1 + 4, 0x18);
    assert_int_equal(in(f, COM1), 'a');
    out(f, COM1, 'l');
    assert_int_equal(in(f, COM1), 'l');
    fake_time_pass(NSEC_PER_SEC);
    assert_int_equal(in(f, COM1 + 5), 0x60);
    assert_int_equal(f->rooms, 0);
    out(f, COM1 + 4, 8);
    assert_int_equal(f->level[4], 0);
    fake_time_pass(100 * NSEC_PER_USEC);
    assert_int_equal(f->level[4], 1);
    assert_int_equal(in(f, COM1), 'b');
    assert_int_equal(in(f, COM1), 'c');
    assert_int_equal(in(f, COM1 + 5), 0x60);
}

static void test_i8042(void **state)
{
    struct fixture *f = *state;

    out(f, 0x64, 0xaa);
    assert_int_equal(in(f, 0x64) & 0x05, 0x05);
    assert_int_equal(in(f, 0x60), 0x55);
    assert_int_equal(in(f, 0x64) & 1, 0);
    out(f, 0x64, 0x60);
    out(f, 0x60, 0x45); /* IRQ 1 on */
    out(f, 0x64, 0x20);
    assert_int_equal(in(f, 0x60), 0x45);
    out(f, 0x60, 0xf2); /* is there a keyboard? */
    assert_int_equal(f->level[1], 1);
    assert_int_equal(in(f, 0x64) & 0x41, 0x41);
    assert_int_equal(in(f, 0x60), 0xfe);
    assert_int_equal(f->level[1], 0);
    out(f, 0x64, 0xd0);
    assert_int_equal(in(f, 0x60) & 2, 2); /* A20 */
    assert_int_equal(f->requests[MACHINE_RESET], 0);
    out(f, 0x64, 0xfe);
    assert_int_equal(f->requests[MACHINE_RESET], 1);
}

static void test_debug_exit(void **state)
{
    struct fixture *f = *state;

    out(f, 0xf4, 0x10);
    assert_int_equal(f->requests[MACHINE_DEBUG_EXIT], 1);
    assert_int_equal(f->code, 0x21);
}

static uint8_t kbc_output_port(struct fixture *f)
{
    out(f, 0x64, 0xd0);
    return in(f, 0x60);
}

static void test_i8042_gates_a20(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(kbc_output_port(f) & 3, 3);
    out(f, 0x64, 0xd1);
    out(f, 0x60, 0xdd); /* what firmware and loaders write to shut it */
    assert_true(mem_a20_mask(f->machine->mem) != UINT64_MAX);
    assert_int_equal(kbc_output_port(f) & 3, 1);
    out(f, 0x64, 0xd1);
    out(f, 0x60, 0xdf);
    assert_true(mem_a20_mask(f->machine->mem) == UINT64_MAX);
    out(f, 0x64, 0xdd);
    assert_true(mem_a20_mask(f->machine->mem) != UINT64_MAX);
    machine_reset_devices(f->machine);
    assert_true(mem_a20_mask(f->machine->mem) == UINT64_MAX);
    assert_int_equal(f->requests[MACHINE_RESET], 0);
    out(f, 0x64, 0xd1);
    out(f, 0x60, 0xde);
    assert_int_equal(f->requests[MACHINE_RESET], 1);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(uart_sends),
        TEST(uart_thre_interrupt),
        TEST(uart_fifo_and_timeout),
        TEST(uart_no_fifo),
        TEST(uart_calls_for_more_when_little_is_left),
        TEST(uart_clears_only_what_came),
        TEST(uart_saves_the_line),
        TEST(uart_loopback),
        TEST(uart_loopback_holds_the_line),
        TEST(i8042),
        TEST(debug_exit),
        TEST(i8042_gates_a20),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
