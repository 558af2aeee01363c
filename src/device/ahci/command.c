/* The life of a command: fetched from its slot, executed by the drive step by step, completed by a
 * FIS. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "device/ahci/ahci_internal.h"

#define HEADER_BYTES 32u
#define HEADER_PRDBC 4u
#define HEADER_ATAPI 0x0020u
#define HEADER_CLEAR 0x0400u /* clear BSY on R_OK */
#define TABLE_CDB    0x40u
#define TABLE_PRDT   0x80u
#define TABLE_MASK   (~(uint64_t)0x7f)

/* 4.2.2 */
struct command_header {
    uint16_t flags, prdtl;
    uint32_t prdbc;
    uint64_t table;
};

static uint32_t slot_bit(const struct ahci_command *cmd)
{
    return 1u << cmd->slot;
}

static bool command_queued(const struct ahci_command *cmd)
{
    return cmd->task.protocol == ATA_QUEUED;
}

/* The adapter stops where it is (6.1.4 to 6.1.6): PxCI and CCS tell the driver where that was. */
static void port_halt(struct ahci_port *port, unsigned slot, uint32_t reason)
{
    port->halted = true;
    port->cmd = (port->cmd & ~PX_CMD_CCS) | slot << 8;
    ahci_port_raise(port, reason);
}

/* The slot's command is over, as far as this side is concerned. */
static void command_free(struct ahci_command *cmd)
{
    struct ahci_port *port = cmd->port;

    port->active &= ~slot_bit(cmd);
    if (port->active)
        return;
    port->exclusive = false;
    pthread_cond_broadcast(&port->hba->idle);
    ahci_port_settle(port);
}

/* A host address that is not memory. The command never ends for the guest: it must reset the port.
 */
static void command_fault(struct ahci_command *cmd)
{
    log_guest("%s: port %u: command with an address outside memory", cmd->port->hba->fn.dev.name,
              cmd->port->index);
    port_halt(cmd->port, cmd->slot, PX_IS_HBFS);
    command_free(cmd);
}

static void finish_queued(struct ahci_command *cmd)
{
    struct ahci_port *port = cmd->port;
    const struct ata_taskfile *tf = &cmd->task.tf;

    if (!(tf->status & ATA_STATUS_ERR)) {
        ahci_fis_device_bits(port, tf, slot_bit(cmd));
        return;
    }
    /* The drive gives up all it has queued; the log says which one failed (Serial ATA 3.0, 13.6.3).
     */
    ahci_fis_device_bits(port, tf, 0);
    port_halt(port, cmd->slot, PX_IS_TFES);
}

/* By which FIS before the last one the data came; with data to the host of a plain command it is
 * the last. */
static void finish_pio(struct ahci_command *cmd)
{
    const struct ata_task *task = &cmd->task;
    bool packet =
        task->protocol == ATA_PACKET_DATA && !(task->tf.feature & 1); /* no DMA asked for */

    if (task->protocol == ATA_PIO_OUT)
        ahci_fis_pio_setup(cmd->port, &task->tf, cmd->moved, false, false);
    else if (task->protocol == ATA_PIO_IN || (packet && cmd->moved))
        ahci_fis_pio_setup(cmd->port, &task->tf, cmd->moved, true, true);
}

static void finish_single(struct ahci_command *cmd)
{
    struct ahci_port *port = cmd->port;
    struct ata_task *task = &cmd->task;
    bool failed = task->tf.status & ATA_STATUS_ERR;

    mem_write32(port->hba->mem, cmd->header + HEADER_PRDBC, cmd->moved);
    if (!failed) {
        port->ci &= ~slot_bit(cmd);
        finish_pio(cmd);
        if (task->protocol == ATA_PIO_IN)
            return;
    }
    ahci_fis_register(port, &task->tf, true);
    if (failed)
        port_halt(port, cmd->slot, PX_IS_TFES);
}

static void command_finish(struct ahci_command *cmd)
{
    struct ahci_port *port = cmd->port;

    if (!port->draining && !port->halted) {
        if (cmd->prdt.interrupt)
            ahci_port_raise(port, PX_IS_DPS);
        if (command_queued(cmd))
            finish_queued(cmd);
        else
            finish_single(cmd);
    }
    command_free(cmd);
}

static void command_ready(struct ahci_command *cmd)
{
    struct ahci_port *port = cmd->port;

    cmd->next = NULL;
    *port->ready_end = cmd;
    port->ready_end = &cmd->next;
}

/* The memory is used up before the data are: a read drops the rest, a write cannot go on. */
static void command_overflow(struct ahci_command *cmd)
{
    if (cmd->task.io.op == BLOCK_READ) {
        ahci_port_raise(cmd->port, PX_IS_OFS);
        ata_block_done(&cmd->port->drive, &cmd->task, 0);
    } else {
        ata_abort(&cmd->port->drive, &cmd->task);
    }
}

/* Prepares the next request of a block step. 1: ready; 0: the step changed; -EFAULT. */
static int command_request(struct ahci_command *cmd)
{
    struct drive_io *step = &cmd->task.io;
    int64_t bytes;

    cmd->io.op = step->op;
    cmd->io.offset = cmd->at;
    cmd->io.iov_count = 0;
    if (step->op != BLOCK_READ && step->op != BLOCK_WRITE) {
        cmd->io.length = cmd->left;
        cmd->left = 0;
        return 1;
    }
    bytes = ahci_command_gather(cmd, cmd->left, step->op == BLOCK_READ);
    if (bytes < 0)
        return (int)bytes;
    if (bytes == 0) {
        command_overflow(cmd);
        return 0;
    }
    cmd->io.length = (uint64_t)bytes;
    cmd->left -= (uint64_t)bytes;
    cmd->at += (uint64_t)bytes;
    return 1;
}

static void command_step_begin(struct ahci_command *cmd)
{
    cmd->at = cmd->task.io.offset;
    cmd->left = cmd->task.io.length;
}

/* Moves the drive's own bytes. */
static int command_data(struct ahci_command *cmd)
{
    struct drive_io *step = &cmd->task.io;
    bool in = step->step == DRIVE_DATA_IN;
    int64_t bytes = ahci_command_copy(cmd, step->data, step->len, in);

    if (bytes < 0)
        return (int)bytes;
    cmd->moved += (uint32_t)bytes;
    if (in)
        step->step = DRIVE_DONE;
    else if (bytes < step->len)
        ata_abort(&cmd->port->drive, &cmd->task);
    else
        ata_data_out(&cmd->port->drive, &cmd->task);
    return 0;
}

/* Goes on until the command waits for the back end or is over. A drive asks for data out at most
 * once. */
static void command_advance(struct ahci_command *cmd)
{
    for (;;) {
        int ret = 0;

        switch (cmd->task.io.step) {
        case DRIVE_DONE: command_finish(cmd); return;
        case DRIVE_DATA_IN: ret = command_data(cmd); break;
        case DRIVE_DATA_OUT:
            ret = command_data(cmd);
            command_step_begin(cmd);
            break;
        case DRIVE_BLOCK: ret = command_request(cmd); break;
        }
        if (ret < 0) {
            command_fault(cmd);
            return;
        }
        if (ret > 0) {
            command_ready(cmd);
            return;
        }
    }
}

static void command_result(struct ahci_command *cmd, int result)
{
    struct ahci_port *port = cmd->port;

    if (cmd->io.op == BLOCK_READ)
        ahci_command_mark_written(cmd);
    if (port->draining || port->halted) {
        command_free(cmd);
        return;
    }
    if (result == 0 && (cmd->io.op == BLOCK_READ || cmd->io.op == BLOCK_WRITE))
        cmd->moved += (uint32_t)cmd->io.length;
    if (result || cmd->left == 0) {
        ata_block_done(&port->drive, &cmd->task, result);
        command_step_begin(cmd);
    }
    command_advance(cmd);
}

static void port_submit(struct ahci_port *port)
{
    struct device *dev = &port->hba->fn.dev;
    struct ahci_command *cmd;

    if (port->submitting)
        return; /* that thread will take what is new, too: no recursion through completions */
    port->submitting = true;
    while ((cmd = port->ready)) {
        port->ready = cmd->next;
        if (!port->ready)
            port->ready_end = &port->ready;
        device_unlock(dev);
        block_submit(cmd->task.io.block, &cmd->io);
        device_lock(dev);
    }
    port->submitting = false;
    pthread_cond_broadcast(&port->hba->idle);
}

void ahci_submit(struct ahci *hba)
{
    for (unsigned i = 0; i < AHCI_PORTS; i++)
        port_submit(&hba->port[i]);
}

static void command_done(struct block_request *io, int result)
{
    struct ahci_command *cmd = io->opaque;
    struct ahci_port *port = cmd->port;
    struct device *dev = &port->hba->fn.dev;

    if (result)
        log_guest("%s: port %u: I/O at byte %llu failed: %s", dev->name, port->index,
                  (unsigned long long)io->offset, strerror(-result));
    device_lock(dev);
    command_result(cmd, result);
    ahci_port_run(port);
    port_submit(port);
    device_unlock(dev);
}

/* A FIS that is no command: its control register may start or end a software reset (10.4.1). */
static void control_fis(struct ahci_port *port, unsigned slot, uint16_t flags, uint8_t control)
{
    struct ata_taskfile tf = {0};
    bool ends = port->soft_reset && !(control & ATA_CONTROL_SRST);

    port->soft_reset = control & ATA_CONTROL_SRST;
    port->ci &= ~(1u << slot);
    if (flags & HEADER_CLEAR)
        port->tfd &= ~(uint32_t)ATA_STATUS_BSY;
    if (!ends)
        return;
    ata_reset(&port->drive, false);
    ata_signature(&port->drive, &tf);
    ahci_fis_register(port, &tf, false);
    port->sig = (uint32_t)tf.lba << 8 | tf.count;
}

static void command_begin(struct ahci_command *cmd, const struct ata_taskfile *tf)
{
    struct ahci_port *port = cmd->port;

    cmd->task.tf = *tf;
    cmd->task.tag = (uint8_t)cmd->slot;
    cmd->task.io = (struct drive_io){.step = DRIVE_DONE};
    cmd->moved = 0;
    port->active |= slot_bit(cmd);
    port->cmd = (port->cmd & ~PX_CMD_CCS) | cmd->slot << 8;
}

/* The drive takes the command into its queue at once, which frees the slot's PxCI bit (5.6.4). */
static void command_start_queued(struct ahci_command *cmd, const struct ata_taskfile *tf)
{
    const struct ata_taskfile accepted = {.status = ATA_STATUS_DRDY | ATA_STATUS_DSC};
    struct ahci_port *port = cmd->port;

    command_begin(cmd, tf);
    port->ci &= ~slot_bit(cmd);
    ahci_fis_register(port, &accepted, false);
    ata_command(&port->drive, &cmd->task, NULL);
    if ((tf->count >> 3 & 0x1f) != cmd->slot || !(port->sact & slot_bit(cmd)))
        ata_abort(&port->drive,
                  &cmd->task); /* 9.3.1: the tag is the slot, and announced in PxSACT */
    if (cmd->task.io.step == DRIVE_BLOCK)
        ahci_fis_dma_setup(port, cmd->slot, (uint32_t)cmd->task.io.length,
                           cmd->task.io.op == BLOCK_READ);
}

static void command_start_single(struct ahci_command *cmd, const struct ata_taskfile *tf,
                                 const uint8_t *cdb)
{
    struct ahci_port *port = cmd->port;

    command_begin(cmd, tf);
    port->exclusive = true;
    port->tfd = ATA_STATUS_BSY;
    cmd->task.io.data = port->data;
    cmd->task.io.capacity = DRIVE_DATA_MIN;
    ata_command(&port->drive, &cmd->task, cdb);
}

/* Queued commands run together, any other alone. */
static bool port_has_room(const struct ahci_port *port, bool queued)
{
    return port->active == 0 || (queued && !port->exclusive);
}

/* False: it has to wait for those before it. */
static bool slot_start(struct ahci_port *port, unsigned slot)
{
    struct ahci_command *cmd = &port->command[slot];
    gpa_t at = port->clb + slot * HEADER_BYTES;
    uint8_t table[TABLE_CDB + SCSI_CDB_MAX], control;
    struct command_header header;
    struct ata_taskfile tf;
    bool is_command, queued;

    if (mem_read(port->hba->mem, at, &header, sizeof(header)) ||
        mem_read(port->hba->mem, header.table & TABLE_MASK, table, sizeof(table))) {
        port_halt(port, slot, PX_IS_HBFS);
        return false;
    }
    if (!ahci_fis_parse(table, &tf, &is_command, &control)) {
        port_halt(port, slot, PX_IS_IFS);
        return false;
    }
    queued = is_command && ata_is_queued(&port->drive, tf.command);
    if (!port_has_room(port, queued))
        return false;
    if (!is_command) {
        control_fis(port, slot, header.flags, control);
        return true;
    }
    cmd->header = at;
    cmd->prdt = (struct ahci_prdt){.table = (header.table & TABLE_MASK) + TABLE_PRDT,
                                   .count = header.prdtl};
    if (queued)
        command_start_queued(cmd, &tf);
    else
        command_start_single(cmd, &tf, header.flags & HEADER_ATAPI ? &table[TABLE_CDB] : NULL);
    command_step_begin(cmd);
    command_advance(cmd);
    return true;
}

static bool port_may_run(const struct ahci_port *port)
{
    return (port->cmd & PX_CMD_ST) && port->present && port->ssts == PX_SSTS_UP && !port->halted &&
           !port->draining && !port->held && !port->hba->resetting;
}

/* Busy by a command of ours: the queue decides. Busy otherwise (5.3.2): nothing is sent to the
 * drive. */
static bool port_drive_busy(const struct ahci_port *port)
{
    return !port->active && (port->tfd & (ATA_STATUS_BSY | ATA_STATUS_DRQ)) && !port->soft_reset;
}

void ahci_port_run(struct ahci_port *port)
{
    for (unsigned slot = 0; slot < AHCI_SLOTS; slot++) {
        if (!(port->ci & ~port->active & 1u << slot))
            continue;
        if (!port_may_run(port) || port_drive_busy(port))
            return;
        (void)slot_start(port, slot);
    }
}

void ahci_port_wait_idle(struct ahci_port *port)
{
    while (port->active || port->submitting)
        pthread_cond_wait(&port->hba->idle, &port->hba->fn.dev.lock);
}

int ahci_commands_create(struct ahci_port *port)
{
    port->command = calloc(AHCI_SLOTS, sizeof(*port->command));
    port->data = calloc(1, DRIVE_DATA_MIN);
    if (!port->command || !port->data) {
        ahci_commands_destroy(port);
        return -ENOMEM;
    }
    for (unsigned i = 0; i < AHCI_SLOTS; i++) {
        struct ahci_command *cmd = &port->command[i];

        cmd->port = port;
        cmd->slot = i;
        cmd->io.iov = cmd->iov;
        cmd->io.done = command_done;
        cmd->io.opaque = cmd;
    }
    return 0;
}

void ahci_commands_destroy(struct ahci_port *port)
{
    free(port->command);
    free(port->data);
    port->command = NULL;
    port->data = NULL;
}
