#include "cpu/soft/trap.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <ucontext.h>
#include <unistd.h>

#include "cpu/soft/code.h"
#include "cpu/soft/jit/jit.h"
#include "cpu/soft/vm.h"

#define TRAP_RED_ZONE 128u

static const int trap_signals[] = {SIGFPE, SIGILL, SIGSEGV, SIGBUS};
#define TRAP_SIGNALS (sizeof(trap_signals) / sizeof(trap_signals[0]))

/* Signal dispositions belong to the process and a signal handler is given no argument of ours, so
 * these cannot live in a struct: the vCPU that runs on this thread, and what was there before. */
static _Thread_local struct soft_vcpu *trap_vcpu;
static struct sigaction trap_previous[TRAP_SIGNALS];
static atomic_int trap_installed;

void soft_trap_enter(struct soft_vcpu *cpu)
{
    trap_vcpu = cpu;
}

/* Runs in place of the stub that faulted. */
static _Noreturn void trap_raise(struct soft_vcpu *cpu, unsigned vector)
{
    if (vector == VECTOR_GP)
        soft_raise_gp(cpu, 0);
    if (vector == VECTOR_XM && !(cpu->mode & SOFT_MODE_OSXMMEXCPT))
        vector = VECTOR_UD;
    soft_raise(cpu, vector);
}

static void trap_say(const char *text)
{
    unsigned len = 0;

    while (text[len])
        len++;
    if (write(STDERR_FILENO, text, len) < 0)
        return;
}

static void trap_previous_handler(int sig, siginfo_t *info, void *context)
{
    const struct sigaction *old = NULL;

    for (unsigned i = 0; i < TRAP_SIGNALS; i++) {
        if (trap_signals[i] == sig)
            old = &trap_previous[i];
    }
    if (old && (old->sa_flags & SA_SIGINFO) && old->sa_sigaction)
        old->sa_sigaction(sig, info, context);
    else if (old && old->sa_handler != SIG_DFL && old->sa_handler != SIG_IGN)
        old->sa_handler(sig);
    else
        signal(sig, SIG_DFL); /* the fault repeats and ends the process with its true cause */
}

/* The guest's registers as translated code left them (jit.h). */
static void trap_save_guest(struct soft_vcpu *cpu, const greg_t *regs, const struct jit_trap *at)
{
    static const struct {
        uint8_t gpr, reg;
    } map[] = {
        {GPR_RAX, REG_RAX}, {GPR_RCX, REG_RCX}, {GPR_RDX, REG_RDX}, {GPR_RBX, REG_RBX},
        {GPR_RSP, REG_R9}, {GPR_RBP, REG_RBP}, {GPR_RSI, REG_RSI}, {GPR_RDI, REG_RDI},
        {GPR_R12, REG_R12}, {GPR_R13, REG_R13}, {GPR_R14, REG_R14}, {GPR_R15, REG_R15},
    };

    for (unsigned i = 0; i < sizeof(map) / sizeof(map[0]); i++)
        cpu->s.gpr[map[i].gpr] = (uint64_t)regs[map[i].reg];
    cpu->s.rip = cpu->code_page + at->offset;
    if (at->flags & JIT_SAVED)
        soft_jit_flags_out(cpu);
    else
        cpu->s.rflags = (cpu->s.rflags & ~(uint64_t)RFLAGS_ARITH) |
                        ((uint64_t)regs[REG_EFL] & RFLAGS_ARITH);
    soft_jit_flags_in(cpu);
}

/* Goes on with function(cpu, trap) on the stack whose top is `rsp`, DF clear; it must not return. */
static void trap_divert(greg_t *regs, struct soft_vcpu *cpu, uint64_t trap, uint64_t rsp)
{
    regs[REG_RSP] = (greg_t)((rsp & ~15ull) - 8);
    regs[REG_RDI] = (greg_t)(uintptr_t)cpu;
    regs[REG_RSI] = (greg_t)trap;
    regs[REG_RIP] = (greg_t)(uintptr_t)trap_raise;
    regs[REG_EFL] &= ~(greg_t)RFLAGS_DF;
}

/* A fault in translated code. False: none that belongs there. */
static bool trap_translated(struct soft_vcpu *cpu, greg_t *regs, uint64_t trap)
{
    const struct soft_jit *jit = cpu->soft_vm->jit;
    const struct jit_trap *at =
        jit ? soft_jit_trap(jit, (const void *)(uintptr_t)regs[REG_RIP]) : NULL;

    if (!at || (trap == VECTOR_PF) != ((at->flags & JIT_POLL) != 0))
        return false;
    if (at->flags & JIT_LOOP) {
        regs[REG_RIP] += at->offset;
        return true;
    }
    trap_save_guest(cpu, regs, at);
    if (at->flags & JIT_POLL) {
        regs[REG_RSP] = (greg_t)cpu->host_rsp;
        regs[REG_RIP] = (greg_t)(uintptr_t)soft_jit_address(jit, jit->thunk[JIT_LEAVE]);
    } else {
        trap_divert(regs, cpu, trap, cpu->host_rsp);
    }
    return true;
}

static void trap_handler(int sig, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;
    greg_t *regs = uc->uc_mcontext.gregs;
    struct soft_vcpu *cpu = trap_vcpu;
    uint64_t trap = (uint64_t)regs[REG_TRAPNO];

    if (!cpu || !cpu->code || info->si_code <= 0 ||
        !soft_code_contains(cpu->code, (uint64_t)regs[REG_RIP])) {
        trap_previous_handler(sig, info, context);
        return;
    }
    if (trap_translated(cpu, regs, trap))
        return;
    if (cpu->soft_vm->jit && soft_jit_contains(cpu->soft_vm->jit, (void *)(uintptr_t)regs[REG_RIP]))
        trap = VECTOR_PF; /* it has no business to fault there */
    if (trap != VECTOR_UD && trap != VECTOR_MF && trap != VECTOR_XM && trap != VECTOR_GP) {
        trap_say("lodge: internal error: native code of the soft engine touched memory it must "
                 "not\n");
        signal(sig, SIG_DFL);
        return;
    }
    trap_divert(regs, cpu, trap, (uint64_t)regs[REG_RSP] - TRAP_RED_ZONE);
}

int soft_trap_install(void)
{
    struct sigaction action = {.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};

    if (atomic_exchange(&trap_installed, 1))
        return 0;
    action.sa_sigaction = trap_handler;
    for (unsigned i = 0; i < TRAP_SIGNALS; i++) {
        if (sigaction(trap_signals[i], &action, &trap_previous[i]) < 0)
            return -errno;
    }
    return 0;
}
