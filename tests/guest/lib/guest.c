#include "guest.h"

#include <stdarg.h>

#define COM1       0x3f8
#define DEBUG_EXIT 0xf4

extern const uint8_t trap_entries[256][16];
extern const uint8_t user_resume[];
extern uint64_t user_kernel_rsp;
void user_enter(uint64_t rip, uint64_t rsp, uint64_t rdi, uint64_t rsi);
void trap_dispatch(struct frame *frame);
_Noreturn void guest_start(uint64_t info);
int main(void);

struct tss64 boot_tss;
struct gate boot_idt[256] __attribute__((aligned(16)));
struct trap trap_last = {.vector = NO_TRAP};
uint64_t trap_fixup, trap_rsp;
unsigned checks_done, checks_wrong;
const char *guest_command_line = "";
static trap_handler *trap_handlers[256];
static bool user_running;
static uint8_t interrupt_stack[16384] __attribute__((aligned(16)));
static uint8_t fault_stack[8192] __attribute__((aligned(16)));
static uint8_t user_stack[8192] __attribute__((aligned(4096)));
static uint8_t page_pool[256][4096] __attribute__((aligned(4096)));
static unsigned pages_used;

void *memset(void *to, int byte, size_t size)
{
    void *start = to;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(byte) : "memory");
    return start;
}

void *memcpy(void *to, const void *from, size_t size)
{
    void *start = to;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size)::"memory");
    return start;
}

int memcmp(const void *a, const void *b, size_t size)
{
    const uint8_t *x = a, *y = b;

    for (size_t i = 0; i < size; i++) {
        if (x[i] != y[i])
            return x[i] < y[i] ? -1 : 1;
    }
    return 0;
}

void put_char(char c)
{
    while (!(inb(COM1 + 5) & 0x20))
        ;
    outb(COM1, (uint8_t)c);
}

static void put_number(uint64_t value, unsigned base, int width, char pad, bool negative)
{
    char digits[24];
    int count = 0;

    do {
        digits[count++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value);
    if (negative)
        digits[count++] = '-';
    for (; width > count; width--)
        put_char(pad);
    while (count)
        put_char(digits[--count]);
}

static const char *print_one(const char *f, va_list *args)
{
    char pad = *f == '0' ? '0' : ' ';
    int width = 0;
    bool is_long = false;

    for (; *f >= '0' && *f <= '9'; f++)
        width = width * 10 + *f - '0';
    for (; *f == 'l'; f++)
        is_long = true;
    if (*f == 's') {
        for (const char *s = va_arg(*args, const char *); *s; s++)
            put_char(*s);
    } else if (*f == 'c') {
        put_char((char)va_arg(*args, int));
    } else if (*f == 'd') {
        int64_t v = is_long ? va_arg(*args, int64_t) : va_arg(*args, int);
        put_number(v < 0 ? (uint64_t)-v : (uint64_t)v, 10, width, pad, v < 0);
    } else if (*f == 'u' || *f == 'x') {
        uint64_t v = is_long ? va_arg(*args, uint64_t) : va_arg(*args, unsigned);
        put_number(v, *f == 'x' ? 16 : 10, width, pad, false);
    } else {
        put_char(*f);
    }
    return f + 1;
}

void print(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    while (*format) {
        if (*format == '%')
            format = print_one(format + 1, &args);
        else
            put_char(*format++);
    }
    va_end(args);
}

_Noreturn void guest_exit(uint8_t value)
{
    outb(DEBUG_EXIT, value);
    for (;;)
        __asm__ volatile("cli\n hlt");
}

void check_failed(const char *file, int line, const char *what, uint64_t got, uint64_t expected)
{
    checks_wrong++;
    print("%s:%d: FAILED: %s is 0x%lx, expected 0x%lx\n", file, line, what, got, expected);
}

static bool option_here(const char *at, const char *name, const char **rest)
{
    while (*name && *at == *name)
        at++, name++;
    *rest = at;
    return !*name && (*at == '=' || *at == ' ' || !*at);
}

uint64_t guest_option(const char *name, uint64_t otherwise)
{
    const char *at = guest_command_line, *rest;

    for (; *at; at++) {
        uint64_t value = 0;

        if ((at != guest_command_line && at[-1] != ' ') || !option_here(at, name, &rest))
            continue;
        if (*rest != '=')
            return 1;
        for (rest++; *rest >= '0' && *rest <= '9'; rest++)
            value = value * 10 + (uint64_t)(*rest - '0');
        return value;
    }
    return otherwise;
}

void *page_alloc(void)
{
    if (pages_used == sizeof(page_pool) / sizeof(page_pool[0])) {
        print("out of pages\n");
        guest_exit(EXIT_FAIL);
    }
    return memset(page_pool[pages_used++], 0, 4096);
}

void trap_set_handler(unsigned vector, trap_handler *handler)
{
    trap_handlers[vector] = handler;
}

static void trap_report(const struct frame *f)
{
    print("unexpected trap %lu error 0x%lx at %lx:%lx flags 0x%lx stack %lx:%lx cr2 0x%lx\n", f->vector,
          f->error, f->cs, f->rip, f->rflags, f->ss, f->rsp, read_cr2());
    print("rax %lx rbx %lx rcx %lx rdx %lx rsi %lx rdi %lx\n", f->rax, f->rbx, f->rcx, f->rdx, f->rsi,
          f->rdi);
    guest_exit(EXIT_TRAP);
}

static void trap_remember(const struct frame *f)
{
    trap_last = (struct trap){.vector = (uint32_t)f->vector, .error = (uint32_t)f->error,
                              .rip = f->rip, .cs = f->cs, .rflags = f->rflags, .rsp = f->rsp,
                              .cr2 = read_cr2(), .rax = f->rax};
}

void trap_dispatch(struct frame *frame)
{
    if (trap_handlers[frame->vector] && trap_handlers[frame->vector](frame))
        return;
    if (user_running && (frame->cs & 3) == 3) {
        trap_remember(frame);
        user_running = false;
        frame->rip = (uint64_t)(uintptr_t)user_resume;
        frame->rsp = user_kernel_rsp;
    } else if (trap_fixup) {
        trap_remember(frame);
        frame->rip = trap_fixup;
        frame->rsp = trap_rsp;
        trap_fixup = 0;
    } else {
        trap_report(frame);
    }
    frame->cs = SEL_CODE64;
    frame->ss = SEL_DATA;
    frame->rflags &= ~(uint64_t)0x47500; /* TF, DF, NT, AC, IF set again by whoever had it */
    frame->rflags |= 2;
}

void user_run(const void *code, uint64_t rdi, uint64_t rsi)
{
    trap_last.vector = NO_TRAP;
    user_running = true;
    user_enter(USER(code), USER(user_stack + sizeof(user_stack) - 64), rdi, rsi);
}

static void make_idt(void)
{
    for (unsigned i = 0; i < 256; i++) {
        uint64_t entry = (uint64_t)(uintptr_t)trap_entries[i];

        boot_idt[i].offset0 = (uint16_t)entry;
        boot_idt[i].selector = SEL_CODE64;
        boot_idt[i].type = (uint16_t)((i == 3 || i == 4 || i == 0x80 ? 0xee00 : 0x8e00) | (i == 8 ? 1 : 0));
        boot_idt[i].offset1 = (uint16_t)(entry >> 16);
        boot_idt[i].offset2 = (uint32_t)(entry >> 32);
    }
}

static void make_tss(void)
{
    uint64_t base = (uint64_t)(uintptr_t)&boot_tss;

    boot_tss.rsp[0] = (uint64_t)(uintptr_t)(interrupt_stack + sizeof(interrupt_stack));
    boot_tss.ist[0] = (uint64_t)(uintptr_t)(fault_stack + sizeof(fault_stack));
    boot_tss.io_map = sizeof(boot_tss);
    boot_gdt[SEL_TSS / 8] = (sizeof(boot_tss) - 1) | (base & 0xffffff) << 16 | 0x89ull << 40 |
                            (base >> 24 & 0xff) << 56;
    boot_gdt[SEL_TSS / 8 + 1] = base >> 32;
}

_Noreturn void guest_start(uint64_t info)
{
    const uint32_t *multiboot = (const uint32_t *)(uintptr_t)info;
    struct { uint16_t limit; uint64_t base; } __attribute__((packed)) idtr = {
        sizeof(boot_idt) - 1, (uint64_t)(uintptr_t)boot_idt};
    int status;

    make_idt();
    make_tss();
    __asm__ volatile("lidt %0\n ltr %w1" ::"m"(idtr), "r"(SEL_TSS));
    if (multiboot[0] & 4)
        guest_command_line = (const char *)(uintptr_t)multiboot[4];
    outb(0x21, 0xff); /* firmware may have left the timer running: no interrupts unless a test asks */
    outb(0xa1, 0xff);
    outb(COM1 + 1, 0);
    outb(COM1 + 3, 3);
    status = main();
    if (checks_wrong || status) {
        print("FAIL: %u of %u checks wrong, status %d\n", checks_wrong, checks_done, status);
        guest_exit(EXIT_FAIL);
    }
    print("PASS: %u checks\n", checks_done);
    guest_exit(EXIT_PASS);
}
