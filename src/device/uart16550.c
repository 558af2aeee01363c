#include "device/uart16550.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

#define UART_FIFO_SIZE 16u
#define UART_LINE_SIZE 256u                 /* bytes on their way to the receiver */
#define UART_LINE_LOW  (UART_LINE_SIZE / 4) /* so few left: time for the sender to send more */
#define UART_CLOCK_HZ  115200u /* baud rate with a divisor of 1 */

enum uart_register { UART_RBR_THR, UART_IER, UART_IIR_FCR, UART_LCR, UART_MCR, UART_LSR, UART_MSR, UART_SCR };

#define UART_IER_ERBFI 0x01u /* received data */
#define UART_IER_ETBEI 0x02u /* transmitter empty */
#define UART_IER_ELSI  0x04u /* line status */
#define UART_IER_EDSSI 0x08u /* modem status */

#define UART_IIR_NONE    0x01u
#define UART_IIR_MODEM   0x00u
#define UART_IIR_THRE    0x02u
#define UART_IIR_DATA    0x04u
#define UART_IIR_LINE    0x06u
#define UART_IIR_TIMEOUT 0x0cu
#define UART_IIR_FIFO    0xc0u

#define UART_FCR_ENABLE   0x01u
#define UART_FCR_CLEAR_RX 0x02u
#define UART_FCR_CLEAR_TX 0x04u
#define UART_FCR_TRIGGER(fcr) ((fcr) >> 6)

#define UART_LCR_DLAB 0x80u

#define UART_MCR_DTR  0x01u
#define UART_MCR_RTS  0x02u
#define UART_MCR_OUT1 0x04u
#define UART_MCR_OUT2 0x08u /* on a PC: lets the interrupt out */
#define UART_MCR_LOOP 0x10u

#define UART_LSR_DR     0x01u
#define UART_LSR_OE     0x02u
#define UART_LSR_ERRORS 0x1eu
#define UART_LSR_THRE   0x20u
#define UART_LSR_TEMT   0x40u

#define UART_MSR_CTS 0x10u
#define UART_MSR_DSR 0x20u
#define UART_MSR_RI  0x40u
#define UART_MSR_DCD 0x80u

struct uart16550 {
    struct device dev;
    struct irq_line irq;
    struct uart16550_sink sink;
    struct timer timer; /* of the receiver, uart_timer_restart() */
    uint8_t ier, fcr, lcr, mcr, lsr, msr, scr, dll, dlm;
    uint8_t thre_pending;    /* the transmitter-empty interrupt is asked for */
    uint8_t timeout_pending; /* and the receive timeout */
    uint8_t fifo[UART_FIFO_SIZE];
    uint8_t fifo_head, fifo_len;
    /*
     * Sent, but not received: what is here waits while the receiver is full, is looped back, or
     * was cleared less than a character ago. It is not in the chip, so no register clears it.
     */
    uint8_t line[UART_LINE_SIZE];
    uint16_t line_head, line_len;
    bool sender_waits; /* it had more than the line took; not saved, since a load calls it anyway */
};

static bool uart_fifo_on(const struct uart16550 *uart)
{
    return uart->fcr & UART_FCR_ENABLE;
}

static unsigned uart_capacity(const struct uart16550 *uart)
{
    return uart_fifo_on(uart) ? UART_FIFO_SIZE : 1;
}

static unsigned uart_trigger(const struct uart16550 *uart)
{
    static const uint8_t level[] = {1, 4, 8, 14};

    return uart_fifo_on(uart) ? level[UART_FCR_TRIGGER(uart->fcr)] : 1;
}

/* The interrupt of highest priority (data sheet table III). */
static uint8_t uart_iir(const struct uart16550 *uart)
{
    if ((uart->ier & UART_IER_ELSI) && (uart->lsr & UART_LSR_ERRORS))
        return UART_IIR_LINE;
    if (uart->ier & UART_IER_ERBFI) {
        if (uart->fifo_len >= uart_trigger(uart))
            return UART_IIR_DATA;
        if (uart->timeout_pending)
            return UART_IIR_TIMEOUT;
    }
    if ((uart->ier & UART_IER_ETBEI) && uart->thre_pending)
        return UART_IIR_THRE;
    if ((uart->ier & UART_IER_EDSSI) && (uart->msr & 0x0f))
        return UART_IIR_MODEM;
    return UART_IIR_NONE;
}

static void uart_update(struct uart16550 *uart)
{
    bool out = (uart->mcr & (UART_MCR_OUT2 | UART_MCR_LOOP)) == UART_MCR_OUT2;

    irq_line_set(&uart->irq, out && uart_iir(uart) != UART_IIR_NONE);
}

/* Ten bits at the rate that is set. */
static uint64_t uart_character_ns(const struct uart16550 *uart)
{
    uint64_t divisor = (uint64_t)uart->dlm << 8 | uart->dll;

    return (divisor ? divisor : 1) * 10 * NSEC_PER_SEC / UART_CLOCK_HZ;
}

static bool uart_can_receive(const struct uart16550 *uart)
{
    return !(uart->mcr & UART_MCR_LOOP) && uart->fifo_len < uart_capacity(uart);
}

/*
 * What waits on the line though there is room, since the receiver was just cleared, comes after a
 * character's time as on a wire: a driver that clears more than once loses only what had come.
 * Else data below the trigger level asks for attention when four characters' time brings no more.
 */
static void uart_timer_restart(struct uart16550 *uart)
{
    uart->timeout_pending = 0;
    if (uart->line_len && uart_can_receive(uart))
        timer_arm(&uart->timer, clock_now() + uart_character_ns(uart));
    else if (uart_fifo_on(uart) && uart->fifo_len && (uart->ier & UART_IER_ERBFI))
        timer_arm(&uart->timer, clock_now() + 4 * uart_character_ns(uart));
    else
        timer_cancel(&uart->timer);
}

static void uart_push(struct uart16550 *uart, uint8_t byte)
{
    if (uart->fifo_len >= uart_capacity(uart)) {
        uart->lsr |= UART_LSR_OE;
        if (!uart_fifo_on(uart)) /* the holding register is overwritten, the FIFO is not */
            uart->fifo[uart->fifo_head] = byte;
        return;
    }
    uart->fifo[(uart->fifo_head + uart->fifo_len++) % UART_FIFO_SIZE] = byte;
    uart->lsr |= UART_LSR_DR;
}

/* Waking the sender costs far more than a byte: not before it has much to send. */
static void uart_call_sender(struct uart16550 *uart)
{
    if (!uart->sender_waits || uart->line_len > UART_LINE_LOW || (uart->mcr & UART_MCR_LOOP))
        return;
    uart->sender_waits = false;
    if (uart->sink.input_room)
        uart->sink.input_room(uart->sink.opaque);
}

/* The line brings what the receiver has room for. True when something came. */
static bool uart_receive(struct uart16550 *uart)
{
    bool came = false;

    for (; uart->line_len && uart_can_receive(uart); came = true) {
        uart_push(uart, uart->line[uart->line_head]);
        uart->line_head = (uart->line_head + 1) % UART_LINE_SIZE;
        uart->line_len--;
    }
    uart_call_sender(uart);
    return came;
}

static void uart_timer(void *opaque)
{
    struct uart16550 *uart = opaque;

    device_lock(&uart->dev);
    if (uart_receive(uart))
        uart_timer_restart(uart);
    else if (uart->fifo_len && uart_fifo_on(uart))
        uart->timeout_pending = 1;
    uart_update(uart);
    device_unlock(&uart->dev);
}

size_t uart16550_input(struct uart16550 *uart, const uint8_t *bytes, size_t len)
{
    size_t taken = 0;
    bool queued;

    device_lock(&uart->dev);
    queued = uart->line_len; /* then what comes now waits for the same end */
    uart->sender_waits = false;
    while (taken < len && !(uart->mcr & UART_MCR_LOOP) && uart->line_len < UART_LINE_SIZE) {
        uart->line[(uart->line_head + uart->line_len++) % UART_LINE_SIZE] = bytes[taken++];
        if (!queued)
            uart_receive(uart);
    }
    uart->sender_waits = taken < len;
    if (taken && !queued) {
        uart_timer_restart(uart);
        uart_update(uart);
    }
    device_unlock(&uart->dev);
    return taken;
}

static void uart_clear_rx(struct uart16550 *uart)
{
    uart->fifo_head = uart->fifo_len = 0;
    uart->lsr &= (uint8_t)~UART_LSR_DR;
    uart_timer_restart(uart);
}

static uint8_t uart_read_rbr(struct uart16550 *uart)
{
    uint8_t byte;

    if (!uart->fifo_len)
        return 0;
    byte = uart->fifo[uart->fifo_head];
    uart->fifo_head = (uart->fifo_head + 1) % UART_FIFO_SIZE;
    uart->fifo_len--;
    if (!uart->fifo_len)
        uart->lsr &= (uint8_t)~UART_LSR_DR;
    uart_receive(uart);
    uart_timer_restart(uart);
    return byte;
}

/* The line is as fast as the sink: the transmitter is empty again at once. */
static void uart_write_thr(struct uart16550 *uart, uint8_t byte)
{
    if (uart->mcr & UART_MCR_LOOP) {
        uart_push(uart, byte);
        uart_timer_restart(uart);
    } else if (uart->sink.output) {
        uart->sink.output(uart->sink.opaque, &byte, 1);
    }
    uart->thre_pending = 1;
}

static void uart_write_ier(struct uart16550 *uart, uint8_t value)
{
    bool receiver;

    /* Enabling it while the transmitter is empty asks for attention at once. */
    if ((value & UART_IER_ETBEI) && !(uart->ier & UART_IER_ETBEI))
        uart->thre_pending = 1;
    receiver = (value ^ uart->ier) & UART_IER_ERBFI;
    uart->ier = value & 0x0f;
    if (receiver) /* the transmitter's changes are frequent, and would put the timer off for ever */
        uart_timer_restart(uart);
}

static void uart_write_fcr(struct uart16550 *uart, uint8_t value)
{
    bool toggled = (value ^ uart->fcr) & UART_FCR_ENABLE;

    uart->fcr = value & (UART_FCR_ENABLE | 0xc8);
    if (!(value & UART_FCR_ENABLE))
        uart->fcr = 0; /* the other bits are not programmed without it */
    if (toggled || (value & UART_FCR_CLEAR_RX))
        uart_clear_rx(uart);
    if (toggled || (value & UART_FCR_CLEAR_TX))
        uart->thre_pending = 1;
}

/* The modem's lines: a quiet, connected peer, or in loop back our own outputs. */
static uint8_t uart_modem_lines(const struct uart16550 *uart)
{
    uint8_t mcr = uart->mcr;

    if (!(mcr & UART_MCR_LOOP))
        return UART_MSR_CTS | UART_MSR_DSR | UART_MSR_DCD;
    return (uint8_t)((mcr & UART_MCR_RTS ? UART_MSR_CTS : 0) |
                     (mcr & UART_MCR_DTR ? UART_MSR_DSR : 0) |
                     (mcr & UART_MCR_OUT1 ? UART_MSR_RI : 0) |
                     (mcr & UART_MCR_OUT2 ? UART_MSR_DCD : 0));
}

static void uart_modem_update(struct uart16550 *uart)
{
    uint8_t old = uart->msr & 0xf0, lines = uart_modem_lines(uart);
    uint8_t delta = (uint8_t)((old ^ lines) >> 4);

    if (!((old & UART_MSR_RI) && !(lines & UART_MSR_RI)))
        delta &= (uint8_t)~0x04u; /* the ring indicator counts its trailing edge only */
    uart->msr = (uint8_t)(lines | (uart->msr & 0x0f) | delta);
}

static void uart_write_mcr(struct uart16550 *uart, uint8_t value)
{
    bool was_loop = uart->mcr & UART_MCR_LOOP;

    uart->mcr = value & 0x1f;
    uart_modem_update(uart);
    if (was_loop && !(value & UART_MCR_LOOP)) {
        uart_timer_restart(uart);
        uart_call_sender(uart);
    }
}

static uint8_t uart_read_iir(struct uart16550 *uart)
{
    uint8_t iir = uart_iir(uart);

    if (iir == UART_IIR_THRE)
        uart->thre_pending = 0;
    return (uint8_t)(iir | (uart_fifo_on(uart) ? UART_IIR_FIFO : 0));
}

static uint8_t uart_read_lsr(struct uart16550 *uart)
{
    uint8_t value = uart->lsr;

    uart->lsr &= (uint8_t)~UART_LSR_ERRORS;
    return value;
}

static uint8_t uart_read_msr(struct uart16550 *uart)
{
    uint8_t value = uart->msr;

    uart->msr &= 0xf0;
    return value;
}

static uint8_t uart_read_register(struct uart16550 *uart, uint64_t offset)
{
    bool dlab = uart->lcr & UART_LCR_DLAB;

    switch ((enum uart_register)offset) {
    case UART_RBR_THR: return dlab ? uart->dll : uart_read_rbr(uart);
    case UART_IER: return dlab ? uart->dlm : uart->ier;
    case UART_IIR_FCR: return uart_read_iir(uart);
    case UART_LCR: return uart->lcr;
    case UART_MCR: return uart->mcr;
    case UART_LSR: return uart_read_lsr(uart);
    case UART_MSR: return uart_read_msr(uart);
    case UART_SCR: return uart->scr;
    }
    return 0xff;
}

static uint64_t uart_read(void *opaque, uint64_t offset, unsigned size)
{
    struct uart16550 *uart = opaque;
    uint64_t value = 0;

    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)uart_read_register(uart, offset + i) << i * 8;
    uart_update(uart);
    return value;
}

static void uart_write_register(struct uart16550 *uart, uint64_t offset, uint8_t value)
{
    bool dlab = uart->lcr & UART_LCR_DLAB;

    switch ((enum uart_register)offset) {
    case UART_RBR_THR:
        if (dlab)
            uart->dll = value;
        else
            uart_write_thr(uart, value);
        break;
    case UART_IER:
        if (dlab)
            uart->dlm = value;
        else
            uart_write_ier(uart, value);
        break;
    case UART_IIR_FCR: uart_write_fcr(uart, value); break;
    case UART_LCR: uart->lcr = value; break;
    case UART_MCR: uart_write_mcr(uart, value); break;
    case UART_LSR:
    case UART_MSR: break; /* read only but for factory tests */
    case UART_SCR: uart->scr = value; break;
    }
}

static void uart_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct uart16550 *uart = opaque;

    for (unsigned i = 0; i < size; i++)
        uart_write_register(uart, offset + i, (uint8_t)(value >> i * 8));
    uart_update(uart);
}

static void uart_reset(struct device *dev)
{
    struct uart16550 *uart = container_of(dev, struct uart16550, dev);

    uart->ier = uart->fcr = uart->lcr = uart->mcr = uart->scr = 0;
    uart->dll = 1; /* undefined on the chip; 115200 is what everyone sets */
    uart->dlm = 0;
    uart->lsr = UART_LSR_THRE | UART_LSR_TEMT;
    uart->msr = uart_modem_lines(uart);
    uart->thre_pending = 0;
    uart_clear_rx(uart);
    uart_call_sender(uart); /* it may have been looped back */
    uart_update(uart);
}

static void uart_destroy(struct device *dev)
{
    struct uart16550 *uart = container_of(dev, struct uart16550, dev);

    timer_release(&uart->timer);
    device_release(dev);
    free(uart);
}

static int uart_loaded(struct device *dev)
{
    struct uart16550 *uart = container_of(dev, struct uart16550, dev);

    if (uart->fifo_len > UART_FIFO_SIZE || uart->fifo_head >= UART_FIFO_SIZE ||
        uart->line_len > UART_LINE_SIZE || uart->line_head >= UART_LINE_SIZE)
        return -EINVAL;
    if (!uart->timeout_pending)
        uart_timer_restart(uart);
    uart_update(uart);
    uart->sender_waits = true; /* this sender knows nothing of what the line took */
    uart_call_sender(uart);
    return 0;
}

static const struct state_field uart16550_fields[] = {
    STATE_UINT(struct uart16550, ier), STATE_UINT(struct uart16550, fcr),
    STATE_UINT(struct uart16550, lcr), STATE_UINT(struct uart16550, mcr),
    STATE_UINT(struct uart16550, lsr), STATE_UINT(struct uart16550, msr),
    STATE_UINT(struct uart16550, scr), STATE_UINT(struct uart16550, dll),
    STATE_UINT(struct uart16550, dlm), STATE_UINT(struct uart16550, thre_pending),
    STATE_UINT(struct uart16550, timeout_pending), STATE_BYTES(struct uart16550, fifo),
    STATE_UINT(struct uart16550, fifo_head), STATE_UINT(struct uart16550, fifo_len),
    STATE_BYTES(struct uart16550, line), STATE_UINT(struct uart16550, line_head),
    STATE_UINT(struct uart16550, line_len),
    STATE_FIELDS_END,
};

static const struct state_table uart16550_state = {"uart16550", 2, uart16550_fields};

static const struct device_ops uart16550_device_ops = {
    .type = "uart16550",
    .reset = uart_reset,
    .destroy = uart_destroy,
    .state = &uart16550_state,
    .loaded = uart_loaded,
};

static const struct bus_ops uart16550_bus_ops = {uart_read, uart_write};

int uart16550_create(struct machine *machine, uint16_t port, struct irq_line irq,
                     const struct uart16550_sink *sink, const char *name, struct uart16550 **out)
{
    struct uart16550 *uart = calloc(1, sizeof(*uart));
    struct bus_region ports = {port, 8, &uart16550_bus_ops, uart, NULL};
    int rc;

    if (!uart)
        return -ENOMEM;
    device_init(&uart->dev, &uart16550_device_ops, name);
    timer_init(&uart->timer, machine->timers, uart_timer, uart);
    uart->irq = irq;
    uart_reset(&uart->dev);
    if (sink)
        uart->sink = *sink;
    ports.dev = &uart->dev;
    rc = bus_add(machine->bus, BUS_PORT, &ports);
    if (rc) {
        uart_destroy(&uart->dev);
        return rc;
    }
    machine_add_device(machine, &uart->dev);
    *out = uart;
    return 0;
}
