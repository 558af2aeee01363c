#include "vm/vm.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "vm/console.h"
#include "vm/stats.h"
#include "vm/vcpus.h"

enum { VM_SIGTERM, VM_SIGINT, VM_SIGHUP, VM_SIGCONT, VM_SIGNALS };

/* What somebody asked of the machine; the first one counts until the main thread has served it. */
struct vm_pending {
    pthread_mutex_t lock;
    bool valid;
    enum machine_request what;
    int code;
    char reason[512];
};

struct vm_runner {
    const struct vm_config *config;
    struct error *err;
    uv_loop_t loop;
    uv_async_t wake;
    uv_signal_t signals[VM_SIGNALS];
    struct console *console;
    struct pc *pc;
    struct vcpus *vcpus;
    struct vm_pending pending;
    unsigned stop_signals; /* how often the operator asked to end it */
    int exit_code;
    int result; /* of vm_run() */
};

/* Any thread, device locks held. */
static void vm_request(void *opaque, enum machine_request what, int code, const char *reason)
{
    struct vm_runner *runner = opaque;
    struct vm_pending *pending = &runner->pending;

    pthread_mutex_lock(&pending->lock);
    if (!pending->valid) {
        pending->valid = true;
        pending->what = what;
        pending->code = code;
        snprintf(pending->reason, sizeof(pending->reason), "%s", reason ? reason : "");
    }
    pthread_mutex_unlock(&pending->lock);
    uv_async_send(&runner->wake);
}

static void vm_on_shutdown(void *opaque)
{
    vm_request(opaque, MACHINE_RESET, 0, "triple fault");
}

static void vm_on_failed(void *opaque, const char *message)
{
    vm_request(opaque, MACHINE_STOP, 1, message);
}

static void vm_on_leave(void *opaque)
{
    vm_request(opaque, MACHINE_STOP, 0, NULL);
}

static void vm_end(struct vm_runner *runner, int exit_code)
{
    runner->exit_code = exit_code;
    uv_stop(&runner->loop);
}

static void vm_fail(struct vm_runner *runner, int code)
{
    runner->result = code;
    uv_stop(&runner->loop);
}

static void vm_serve_reset(struct vm_runner *runner, const char *reason)
{
    const char *why = *reason ? reason : "asked by the guest";
    int r;

    if (runner->config->no_reboot) {
        log_info("the guest reset (%s); --no-reboot ends the machine", why);
        vm_end(runner, 0);
        return;
    }
    log_info("the guest reset (%s)", why);
    vcpus_pause(runner->vcpus);
    pthread_mutex_lock(&runner->pending.lock);
    runner->pending.valid = false; /* what was asked before the reset is void */
    pthread_mutex_unlock(&runner->pending.lock);
    r = pc_reset(runner->pc, vcpus_array(runner->vcpus), runner->err);
    if (r < 0)
        vm_fail(runner, r);
    else
        vcpus_resume(runner->vcpus);
}

static void vm_serve(uv_async_t *wake)
{
    struct vm_runner *runner = wake->data;
    struct vm_pending *pending = &runner->pending;
    char reason[sizeof(pending->reason)];
    enum machine_request what;
    bool valid;
    int code;

    pthread_mutex_lock(&pending->lock);
    valid = pending->valid;
    what = pending->what;
    code = pending->code;
    memcpy(reason, pending->reason, sizeof(reason));
    pthread_mutex_unlock(&pending->lock);
    if (!valid)
        return;
    switch (what) {
    case MACHINE_POWER_OFF: vm_end(runner, 0); break;
    case MACHINE_DEBUG_EXIT: vm_end(runner, code); break;
    case MACHINE_RESET: vm_serve_reset(runner, reason); break;
    case MACHINE_STOP:
        if (*reason)
            vm_fail(runner, error_set(runner->err, -EIO, "%s", reason));
        else
            vm_end(runner, code);
        break;
    }
}

/* First the power button, so that the guest can end in order; then the plug. */
static void vm_serve_signal(uv_signal_t *signal, int number)
{
    struct vm_runner *runner = signal->data;

    if (number == SIGCONT) {
        console_resume(runner->console);
        return;
    }
    if (runner->stop_signals++ == 0) {
        log_info("signal %d: pressed the power button; once more stops the machine at once", number);
        pc_power_button(runner->pc);
        return;
    }
    console_discard(runner->console);
    vm_request(runner, MACHINE_STOP, 1, "stopped at once by a second signal");
}

static void vm_watch_signals(struct vm_runner *runner)
{
    static const int numbers[VM_SIGNALS] = {
        [VM_SIGTERM] = SIGTERM,
        [VM_SIGINT] = SIGINT,
        [VM_SIGHUP] = SIGHUP,
        [VM_SIGCONT] = SIGCONT,
    };

    for (unsigned i = 0; i < VM_SIGNALS; i++) {
        uv_signal_init(&runner->loop, &runner->signals[i]);
        runner->signals[i].data = runner;
        uv_signal_start(&runner->signals[i], vm_serve_signal, numbers[i]);
    }
}

static void vm_unwatch_signals(struct vm_runner *runner)
{
    for (unsigned i = 0; i < VM_SIGNALS; i++)
        uv_close((uv_handle_t *)&runner->signals[i], NULL);
}

/* vCPUs are there and parked. */
static int vm_serve_until_end(struct vm_runner *runner)
{
    int r = pc_reset(runner->pc, vcpus_array(runner->vcpus), runner->err);

    if (r < 0)
        return r;
    vm_watch_signals(runner);
    console_start(runner->console, runner->pc->com1);
    vcpus_resume(runner->vcpus);
    uv_run(&runner->loop, UV_RUN_DEFAULT);
    vcpus_pause(runner->vcpus);
    console_stop(runner->console);
    vm_unwatch_signals(runner);
    return runner->result;
}

static_assert(VM_CPUS_MAX == PC_CPUS_MAX && VM_DISKS_MAX == PC_DISKS_MAX, "as the PC takes them");
static_assert(VM_INITRDS_MAX == BOOT_MODULES_MAX, "as the loaders take them");

static void vm_describe_pc(const struct vm_config *config, struct pc_config *pc)
{
    *pc = (struct pc_config){
        .name = config->name,
        .cpus = config->cpus,
        .memory = config->memory,
        .cpu_model = config->cpu_model,
        .boot = {.kernel = config->kernel, .module_count = config->initrd_count,
                 .cmdline = config->append},
        .disk_count = config->disk_count,
        .net_user = config->net,
        .net = config->net_user,
        .debug_exit = config->debug_exit,
        .trace_unknown = config->verbose,
    };
    memcpy(pc->boot.modules, config->initrd, sizeof(pc->boot.modules));
    memcpy(pc->disks, config->disk, sizeof(pc->disks));
}

static int vm_run_machine(struct vm_runner *runner)
{
    const struct vcpus_events events = {vm_on_shutdown, vm_on_failed, runner};
    struct uart16550_sink sink = console_sink(runner->console);
    uint64_t start = clock_now();
    struct pc_config config;
    int r;

    vm_describe_pc(runner->config, &config);
    r = pc_create(&config, runner->config->engine, &sink, &runner->pc, runner->err);
    if (r < 0)
        return r;
    runner->pc->machine->request = vm_request;
    runner->pc->machine->request_opaque = runner;
    r = vcpus_create(runner->pc, &events, &runner->vcpus, runner->err);
    if (r < 0) {
        pc_remove_devices(runner->pc);
        pc_destroy(runner->pc);
        return r;
    }
    r = vm_serve_until_end(runner);
    if (runner->config->stats)
        stats_print(runner->pc, clock_now() - start);
    pc_remove_devices(runner->pc);
    vcpus_destroy(runner->vcpus);
    pc_destroy(runner->pc);
    return r;
}

static int vm_init_loop(struct vm_runner *runner)
{
    int r = uv_loop_init(&runner->loop);

    if (r < 0)
        return r;
    runner->wake.data = runner;
    r = uv_async_init(&runner->loop, &runner->wake, vm_serve);
    if (r < 0)
        uv_loop_close(&runner->loop);
    runner->wake.data = runner;
    return r;
}

static int vm_open_console(struct vm_runner *runner)
{
    static const enum console_kind kinds[] = {
        [VM_SERIAL_STDIO] = CONSOLE_STDIO,
        [VM_SERIAL_NONE] = CONSOLE_NONE,
        [VM_SERIAL_FILE] = CONSOLE_FILE,
        [VM_SERIAL_UNIX] = CONSOLE_UNIX,
    };
    const struct console_options options = {kinds[runner->config->serial],
                                            runner->config->serial_path};

    return console_open(&options, &runner->loop, vm_on_leave, runner, &runner->console,
                        runner->err);
}

int vm_run(const struct vm_config *config, int *status, struct error *err)
{
    struct vm_runner runner = {.config = config, .err = err};
    int r;

    signal(SIGPIPE, SIG_IGN); /* a reader that has gone is an error of that write */
    pthread_mutex_init(&runner.pending.lock, NULL);
    r = vm_init_loop(&runner);
    if (r < 0) {
        error_set(err, r, "cannot make the event loop: %s", uv_strerror(r));
        goto err_lock;
    }
    r = vm_open_console(&runner);
    if (r == 0) {
        r = vm_run_machine(&runner);
        console_close(runner.console);
    }
    uv_close((uv_handle_t *)&runner.wake, NULL);
    uv_run(&runner.loop, UV_RUN_DEFAULT); /* lets the handles close */
    uv_loop_close(&runner.loop);
    *status = runner.exit_code;

err_lock:
    pthread_mutex_destroy(&runner.pending.lock);
    return r;
}
