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
#include "vm/stop.h"
#include "vm/vcpus.h"
#include "vm/watchdog.h"

/* Time for what is under way (a disk request, a vCPU in a device) when the machine has ended. */
#define VM_TEARDOWN_NS (10 * NSEC_PER_SEC)

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
    struct stop stop;
    struct console *console;
    struct pc *pc;
    struct vcpus *vcpus;
    struct vm_pending pending;
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

static bool vm_on_button(void *opaque)
{
    struct vm_runner *runner = opaque;

    return pc_power_button(runner->pc);
}

static void vm_on_plug(void *opaque, const char *reason)
{
    struct vm_runner *runner = opaque;

    console_discard(runner->console);
    vm_request(runner, MACHINE_STOP, 1, reason);
}

static void vm_on_resumed(void *opaque)
{
    struct vm_runner *runner = opaque;

    console_resume(runner->console);
}

/* Any thread: something that was under way does not end, so neither would the process. */
static void vm_on_stuck(void *opaque)
{
    struct vm_runner *runner = opaque;

    log_error("%s%sthe machine is left with a request that the host does not answer",
              runner->err->message, runner->result < 0 ? "; " : "");
    runner->config->abandon();
}

/* vCPUs are there and parked. */
static int vm_serve_until_end(struct vm_runner *runner)
{
    const struct stop_events events = {vm_on_button, vm_on_plug, vm_on_resumed, runner};
    int r = pc_reset(runner->pc, vcpus_array(runner->vcpus), runner->err);

    if (r < 0)
        return r;
    stop_watch(&runner->stop, &runner->loop, &events);
    console_start(runner->console, runner->pc->com1);
    vcpus_resume(runner->vcpus);
    uv_run(&runner->loop, UV_RUN_DEFAULT);
    stop_unwatch(&runner->stop); /* from here a signal kills */
    return runner->result;
}

static_assert(VM_CPUS_MAX == PC_CPUS_MAX && VM_DISKS_MAX == PC_DISKS_MAX &&
                  VM_CDROMS_MAX == PC_CDROMS_MAX, "as the PC takes them");
static_assert(VM_INITRDS_MAX == BOOT_MODULES_MAX, "as the loaders take them");

static void vm_describe_pc(const struct vm_config *config, struct pc_config *pc)
{
    *pc = (struct pc_config){
        .name = config->name,
        .cpus = config->cpus,
        .memory = config->memory,
        .cpu_model = config->cpu_model,
        .code_cache = config->code_cache,
        .boot = {.kernel = config->kernel,
                  .module_count = config->initrd_count,
                 .cmdline = config->append},
        .firmware = config->firmware,
        .disk_count = config->disk_count,
        .cdrom_count = config->cdrom_count,
        .net_user = config->net,
        .net = config->net_user,
        .debug_exit = config->debug_exit,
        .trace_unknown = config->verbose,
    };
    memcpy(pc->boot.modules, config->initrd, sizeof(pc->boot.modules));
    memcpy(pc->disks, config->disk, sizeof(pc->disks));
    memcpy(pc->disk_bus, config->disk_bus, sizeof(pc->disk_bus));
    memcpy(pc->cdroms, config->cdrom, sizeof(pc->cdroms));
}

static int vm_run_machine(struct vm_runner *runner)
{
    const struct vcpus_events events = {vm_on_shutdown, vm_on_failed, runner};
    struct uart16550_sink sink = console_sink(runner->console);
    uint64_t start = clock_now();
    struct pc_config config;
    struct watchdog dog;
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
    watchdog_start(&dog, VM_TEARDOWN_NS, vm_on_stuck, runner);
    vcpus_pause(runner->vcpus);
    console_stop(runner->console);
    if (runner->config->stats)
        stats_print(runner->pc, clock_now() - start);
    pc_remove_devices(runner->pc);
    watchdog_stop(&dog);
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
