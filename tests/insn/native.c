#include <asm/prctl.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include "base/compiler.h"
#include "tests/insn/diff.h"

#define NATIVE_STACK 65536u
#define NATIVE_TIMEOUT_MS 20000
#define NATIVE_FLAGS 0x202u

/* Runs without the C library's FS base: the stack protector's value is there. */
#define NATIVE_BARE __attribute__((no_stack_protector))

struct diff_native {
    struct diff_shared *shared;
    pid_t pid;
    int request, answer; /* pipes: a byte each way */
};

/* The child's, read by its signal handler and by the assembly below. */
uint64_t native_rsp;
static uint64_t native_fs; /* the C library's; not in place while a stream runs */
static struct diff_outcome *native_outcome;
/* `xsave` apart, so that its offset need not be known to the assembly. */
void native_enter(const struct diff_case *c, const uint8_t *xsave);
extern const uint8_t native_resume[];

static_assert(offsetof(struct diff_case, rflags) == 128, "the assembly below");

__asm__(".text\n"
        ".globl native_enter\n"
        "native_enter:\n"
        "push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
        "mov %rsp, native_rsp(%rip)\n"
        "mov $0xe7, %eax; xor %edx, %edx\n"
        "xrstor64 (%rsi)\n"
        "pushq 128(%rdi); popfq\n"
        "mov (%rdi), %rax; mov 8(%rdi), %rcx; mov 16(%rdi), %rdx; mov 24(%rdi), %rbx\n"
        "mov 32(%rdi), %rsp; mov 40(%rdi), %rbp; mov 48(%rdi), %rsi\n"
        "mov 64(%rdi), %r8; mov 72(%rdi), %r9; mov 80(%rdi), %r10; mov 88(%rdi), %r11\n"
        "mov 96(%rdi), %r12; mov 104(%rdi), %r13; mov 112(%rdi), %r14; mov 120(%rdi), %r15\n"
        "mov 56(%rdi), %rdi\n"
        "jmp *native_entry(%rip)\n"
        ".globl native_resume\n"
        "native_resume:\n"
        "fninit\n"
        "ldmxcsr native_mxcsr(%rip)\n"
        "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
        "ret\n"
        ".section .rodata\n"
        "native_entry: .quad 0x200000\n"
        "native_mxcsr: .long 0x1f80\n"
        ".text\n");

/* Before anything that may look at thread-local data. */
static inline void native_set_base(int which, uint64_t base)
{
    long ret;

    __asm__ volatile("syscall"
                     : "=a"(ret)
                     : "0"((long)SYS_arch_prctl), "D"((long)which), "S"(base)
                     : "rcx", "r11", "memory");
}

static NATIVE_BARE void native_signal(int sig, siginfo_t *info, void *context)
{
    static const uint8_t order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                      REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                      REG_R12, REG_R13, REG_R14, REG_R15};
    ucontext_t *uc = context;
    greg_t *regs = uc->uc_mcontext.gregs;
    struct diff_outcome *out = native_outcome;

    native_set_base(ARCH_SET_FS, native_fs);
    (void)info;
    (void)sig;
    for (unsigned i = 0; i < 16; i++)
        out->gpr[i] = (uint64_t)regs[order[i]];
    out->rip = (uint64_t)regs[REG_RIP];
    out->rflags = (uint64_t)regs[REG_EFL];
    out->vector = (uint64_t)regs[REG_TRAPNO];
    out->error = (uint64_t)regs[REG_ERR];
    out->address = out->vector == 14 ? (uint64_t)regs[REG_CR2] : 0;
    memcpy(out->xsave, uc->uc_mcontext.fpregs, diff_xsave_size());
    memset(out->xsave + diff_xsave_size(), 0, sizeof(out->xsave) - diff_xsave_size());
    regs[REG_RSP] = (greg_t)native_rsp;
    regs[REG_RIP] = (greg_t)(uintptr_t)native_resume;
    regs[REG_EFL] = NATIVE_FLAGS;
}

static void native_map(uint64_t address, uint64_t size, int prot)
{
    void *want = (void *)(uintptr_t)address;

    BUG_ON(mmap(want, size, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) !=
           want);
}

static void native_prepare(void)
{
    static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    struct sigaction action = {.sa_sigaction = native_signal,
                               .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    stack_t stack = {.ss_size = NATIVE_STACK};

    stack.ss_sp = malloc(NATIVE_STACK);
    BUG_ON(!stack.ss_sp || sigaltstack(&stack, NULL) < 0);
    for (unsigned i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
        BUG_ON(sigaction(signals[i], &action, NULL) < 0);
    native_map(DIFF_CODE, 4096, PROT_READ | PROT_EXEC);
    native_map(DIFF_COUNTER, 4096, PROT_READ | PROT_WRITE);
    BUG_ON(syscall(SYS_arch_prctl, ARCH_GET_FS, &native_fs) < 0);
    native_map(DIFF_DATA, DIFF_DATA_SIZE + 4096, PROT_READ | PROT_WRITE);
    diff_memory_fill((uint8_t *)(uintptr_t)DIFF_DATA_READONLY, 4096, 1);
    BUG_ON(mprotect((void *)(uintptr_t)DIFF_DATA_READONLY, 4096, PROT_READ) < 0);
}

/* Not by a second mapping: code changed through another linear address needs a serializing instruction. */
static void native_code(const struct diff_case *c)
{
    void *page = (void *)(uintptr_t)DIFF_CODE;

    BUG_ON(mprotect(page, 4096, PROT_READ | PROT_WRITE) < 0);
    memset(page, 0xcc, 4096);
    memcpy(page, c->code, sizeof(c->code));
    BUG_ON(mprotect(page, 4096, PROT_READ | PROT_EXEC) < 0);
}

static NATIVE_BARE void native_one(const struct diff_case *c, struct diff_outcome *out)
{
    uint8_t *data = (uint8_t *)(uintptr_t)DIFF_DATA;

    diff_memory_fill(data, DIFF_DATA_SIZE, c->memory_seed);
    native_code(c);
    *(uint32_t *)(uintptr_t)DIFF_COUNTER = c->repeats;
    native_outcome = out;
    native_set_base(ARCH_SET_GS, c->gs_base);
    native_set_base(ARCH_SET_FS, c->fs_base);
    native_enter(c, c->xsave);
    memcpy(out->data, data, DIFF_DATA_SIZE);
}

static _Noreturn void native_child(struct diff_shared *shared, int request, int answer)
{
    char byte;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    native_prepare();
    while (read(request, &byte, 1) == 1) {
        for (uint32_t i = 0; i < shared->count; i++)
            native_one(&shared->cases[i], &shared->outcomes[i]);
        if (write(answer, &byte, 1) != 1)
            break;
    }
    _exit(0);
}

static void native_start(struct diff_native *native)
{
    int request[2], answer[2];

    BUG_ON(pipe(request) < 0 || pipe(answer) < 0);
    native->pid = fork();
    BUG_ON(native->pid < 0);
    if (native->pid == 0) {
        close(request[1]);
        close(answer[0]);
        native_child(native->shared, request[0], answer[1]);
    }
    close(request[0]);
    close(answer[1]);
    native->request = request[1];
    native->answer = answer[0];
}

static void native_stop(struct diff_native *native)
{
    kill(native->pid, SIGKILL);
    waitpid(native->pid, NULL, 0);
    close(native->request);
    close(native->answer);
}

struct diff_native *diff_native_create(struct diff_shared *shared)
{
    struct diff_native *native = calloc(1, sizeof(*native));

    BUG_ON(!native);
    native->shared = shared;
    native_start(native);
    return native;
}

bool diff_native_run(struct diff_native *native)
{
    struct pollfd fd = {.fd = native->answer, .events = POLLIN};
    char byte = 0;

    if (write(native->request, &byte, 1) == 1 && poll(&fd, 1, NATIVE_TIMEOUT_MS) == 1 &&
        read(native->answer, &byte, 1) == 1)
        return true;
    native_stop(native);
    native_start(native);
    return false;
}

void diff_native_destroy(struct diff_native *native)
{
    native_stop(native);
    free(native);
}
