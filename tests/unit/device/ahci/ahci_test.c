/* The register machine of the AHCI adapter, driven as a guest would: disk on port 0, CD-ROM on
 * port 1. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "../ahci_driver.h"
#include "../fake_disk.h"
#include "device/ahci/ahci.h"

#define SECTORS 4096u
#define DATA    0x200000u
#define MSI     5u

#define IS   0x10u
#define IE   0x14u
#define CMD  0x18u
#define TFD  0x20u
#define SIG  0x24u
#define SSTS 0x28u
#define SCTL 0x2cu
#define SERR 0x30u
#define SACT 0x34u
#define CI   0x38u

static struct {
    struct driver_machine dm;
    struct ahci_driver a;
    struct mem *mem;
    struct ahci *hba;
    struct fake_disk *disk, *iso;
} f;

static int setup(void **state)
{
    (void)state;
    memset(&f, 0, sizeof(f));
    driver_machine_init(&f.dm);
    f.mem = f.dm.machine->mem;
    f.disk = fake_disk_create(SECTORS * 512);
    f.iso = fake_disk_create(64 * 2048);
    assert_int_equal(ahci_create(f.dm.host, -1, "ahci0", &f.hba), 0);
    assert_int_equal(ahci_plug(f.hba, 0, ATA_DISK, &f.disk->block, 0), 0);
    assert_int_equal(ahci_plug(f.hba, 1, ATA_CD, &f.iso->block, 1), 0);
    ahci_driver_init(&f.a, &f.dm, 1);
    return 0;
}

static int setup_started(void **state)
{
    setup(state);
    ahci_msi_enable(&f.a, MSI);
    ahci_write(&f.a, 0x04, 2);
    ahci_port_start(&f.a, 0);
    ahci_port_start(&f.a, 1);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    driver_machine_release(&f.dm);
    return 0;
}

static uint32_t get(unsigned reg)
{
    return ahci_port_get(&f.a, 0, reg);
}

static void set(unsigned reg, uint32_t value)
{
    ahci_port_set(&f.a, 0, reg, value);
}

static void issue_on(unsigned port, unsigned slot, struct ahci_issue issue, unsigned count,
                     const struct ahci_prd *prd)
{
    issue.device |= 0x40;
    ahci_issue(&f.a, port, slot, &issue, prd, count);
}
#define ISSUE(slot, prds, ...)                                                                     \
    issue_on(0, slot, (struct ahci_issue){__VA_ARGS__}, (unsigned)ARRAY_SIZE(prds), prds)

static const struct ahci_prd one_page[] = {{DATA, 4096}};
static const struct ahci_prd sector[] = {{DATA, 512}};

static uint8_t byte_at(uint64_t gpa)
{
    uint8_t byte = 0;

    assert_int_equal(mem_read(f.mem, gpa, &byte, 1), 0);
    return byte;
}

static uint32_t prdbc(unsigned port, unsigned slot)
{
    return mem_read32(f.mem, AHCI_LIST(port) + slot * 32 + 4);
}

static void test_identity(void **state)
{
    (void)state;
    assert_int_equal(driver_config_read(&f.a.d, 0, 4), 0x29228086);
    assert_int_equal(driver_config_read(&f.a.d, 9, 3), 0x010601);
    assert_int_equal(driver_config_read(&f.a.d, 0x34, 1), 0x80);
    assert_int_equal(driver_config_read(&f.a.d, 0x90, 1), 0x40);
    assert_int_equal(driver_config_read(&f.a.d, 0x93, 1), 0x03); /* drives on ports 0 and 1 */
    driver_config_write(&f.a.d, 0x92, 2, 0xffff);
    assert_int_equal(driver_config_read(&f.a.d, 0x92, 2), 0x033f);
    assert_int_equal(ahci_read(&f.a, 0x00), 0xc1241f05 | 1u << 15);
    assert_int_equal(ahci_read(&f.a, 0x0c), 0x3f);
    assert_int_equal(ahci_read(&f.a, 0x10), 0x00010301);
    ahci_write(&f.a, 0x04, 0);
    assert_int_equal(ahci_read(&f.a, 0x04), 0x80000000); /* AHCI mode only */
    ahci_write(&f.a, 0x0c, 0);
    assert_int_equal(ahci_read(&f.a, 0x0c), 0x3f);
    assert_int_equal(bus_read(f.dm.machine->bus, BUS_MEMORY, f.a.abar + 1, 2), 0x241f | 1u << 7);
    assert_int_equal(bus_read(f.dm.machine->bus, BUS_MEMORY, f.a.abar, 8) >> 32, 0x80000000);
}

static void test_links_after_power_on(void **state)
{
    (void)state;
    assert_int_equal(get(SSTS), 0x123);
    assert_int_equal(get(SIG), 0x00000101);
    assert_int_equal(get(TFD), 0x0150);
    assert_int_equal(get(CMD), 0x00040006);
    assert_int_equal(ahci_port_get(&f.a, 1, SIG), 0xeb140101);
    assert_int_equal(ahci_port_get(&f.a, 1, TFD), 0x0100);
    assert_int_equal(ahci_port_get(&f.a, 2, SSTS), 0);
    assert_int_equal(ahci_port_get(&f.a, 2, TFD), 0x7f);
    assert_int_equal(ahci_port_get(&f.a, 2, SIG), UINT32_MAX);
    assert_int_equal(get(IS) & 0x40, 0x40);
    set(IS, UINT32_MAX); /* only clearing SERR ends this one */
    assert_int_equal(get(IS) & 0x00400040, 0x00400040);
    set(SERR, UINT32_MAX);
    assert_int_equal(get(IS), 0);
    set(0x08, AHCI_FIS(0)); /* the first FIS waits for FRE */
    assert_int_equal(byte_at(AHCI_FIS(0) + 0x40), 0);
    set(CMD, 0x10);
    assert_int_equal(byte_at(AHCI_FIS(0) + 0x40), 0x34);
    assert_int_equal(byte_at(AHCI_FIS(0) + 0x42), 0x50);
    assert_int_equal(get(CMD) & 0xc000, 0x4000);
}

static void test_identify(void **state)
{
    (void)state;
    ISSUE(3, sector, .command = 0xec);
    assert_int_equal(get(CI), 0);
    assert_int_equal(get(TFD), 0x50);
    assert_int_equal(get(IS), 0x02); /* PIO setup */
    assert_int_equal(prdbc(0, 3), 512);
    assert_int_equal(mem_read32(f.mem, DATA + 120), SECTORS);
    assert_int_equal(byte_at(AHCI_FIS(0) + 0x20), 0x5f);
    assert_int_equal(byte_at(AHCI_FIS(0) + 0x21), 0x60);
    assert_int_equal(byte_at(AHCI_FIS(0) + 0x22), 0x58);
    assert_int_equal(byte_at(AHCI_FIS(0) + 0x2f), 0x50);
    assert_int_equal(f.dm.msi_count[MSI], 1);
    assert_int_equal(ahci_read(&f.a, 0x08), 1);
}

static void test_dma_read_and_write(void **state)
{
    const struct ahci_prd pieces[] = {
        {DATA + 2, 100}, {DATA + 0x1000, 1000}, {DATA + 0x2000, 4096}};

    (void)state;
    ISSUE(0, pieces, .command = 0x25, .lba = 7, .count = 3);
    assert_int_equal(get(CI), 0);
    assert_int_equal(get(IS), 0x01);
    assert_int_equal(prdbc(0, 0), 1536);
    assert_int_equal(byte_at(DATA + 2), 8);
    assert_int_equal(byte_at(DATA + 0x1000 + 411), 8);
    assert_int_equal(byte_at(DATA + 0x1000 + 412), 9);
    assert_int_equal(byte_at(DATA + 0x2000 + 435), 10);
    assert_int_equal(byte_at(DATA + 0x2000 + 436), 0);
    assert_int_equal(byte_at(AHCI_FIS(0) + 0x40), 0x34);
    assert_int_equal(byte_at(AHCI_FIS(0) + 0x41), 0x40);
    assert_int_equal(mem_fill(f.mem, DATA, 0xa5, 4096), 0);
    ISSUE(31, one_page, .command = 0x35, .lba = 100, .count = 8);
    assert_int_equal(get(CI), 0);
    assert_int_equal(f.disk->bytes[100 * 512], 0xa5);
    assert_int_equal(f.disk->bytes[108 * 512 - 1], 0xa5);
    assert_int_equal(f.disk->bytes[108 * 512], 109);
    ISSUE(1, one_page, .command = 0xea);
    assert_int_equal(f.disk->count[BLOCK_FLUSH], 1);
}

/* More pieces than one request takes, cut so that requests must end between sectors. */
static void test_many_small_pieces(void **state)
{
    static struct ahci_prd pieces[700];

    (void)state;
    for (unsigned i = 0; i < ARRAY_SIZE(pieces); i++)
        pieces[i] = (struct ahci_prd){DATA + i * 64, 6};
    ISSUE(0, pieces, .command = 0x25, .lba = 0, .count = 8);
    assert_int_equal(get(CI), 0);
    assert_int_equal(get(IS), 0x01);
    assert_int_equal(prdbc(0, 0), 4096);
    assert_true(f.disk->count[BLOCK_READ] >= 3);
    for (unsigned i = 0; i < 4096; i++)
        assert_int_equal(byte_at(DATA + i / 6 * 64 + i % 6), i / 512 + 1);
    assert_int_equal(byte_at(DATA + 4096 / 6 * 64 + 4096 % 6), 0);
}

static void test_memory_ends_too_soon(void **state)
{
    (void)state;
    ISSUE(0, sector, .command = 0x25, .lba = 0, .count = 8);
    assert_int_equal(get(CI), 0);
    assert_int_equal(get(IS), 0x01000001); /* overflow */
    assert_int_equal(prdbc(0, 0), 512);
    set(IS, UINT32_MAX);
    ISSUE(0, sector, .command = 0x35, .lba = 0, .count = 8);
    assert_int_equal(get(IS), 0x40000001);
    assert_int_equal(get(TFD), 0x0451);
}

static void test_queued(void **state)
{
    (void)state;
    f.disk->hold = true;
    ISSUE(4, one_page, .command = 0x60, .lba = 16, .feature = 8, .count = 4 << 3);
    issue_on(0, 9, (struct ahci_issue){.command = 0x61, .lba = 64, .feature = 1, .count = 9 << 3},
             1, (const struct ahci_prd[]){{DATA + 0x10000, 512}});
    assert_int_equal(get(CI), 0); /* accepted */
    assert_int_equal(get(SACT), 0x210);
    assert_int_equal(get(TFD), 0x50);
    assert_int_equal(get(IS), 0);
    assert_int_equal(f.disk->held_count, 2);
    ISSUE(12, sector, .command = 0xec); /* waits for the queue to be empty */
    assert_int_equal(get(CI), 1u << 12);
    fake_disk_finish(f.disk, 1);
    assert_int_equal(get(SACT), 0x010);
    assert_int_equal(get(IS), 0x08);
    assert_int_equal(byte_at(AHCI_FIS(0) + 0x58), 0xa1);
    assert_int_equal(mem_read32(f.mem, AHCI_FIS(0) + 0x5c), 0x200);
    assert_int_equal(get(CI), 1u << 12);
    fake_disk_finish(f.disk, 0);
    assert_int_equal(get(SACT), 0);
    assert_int_equal(get(CI), 0);
    assert_int_equal(f.disk->count[BLOCK_READ], 1);
    assert_int_equal(byte_at(AHCI_FIS(0)), 0x41);
}

static void stop_and_start(void)
{
    set(CMD, 0x10);
    assert_int_equal(get(CMD) & 0x8000, 0);
    assert_int_equal(get(CI) | get(SACT), 0);
    set(IS, UINT32_MAX);
    set(CMD, 0x11);
    assert_int_equal(get(CMD) & 0x8000, 0x8000);
}

static void test_queued_error(void **state)
{
    (void)state;
    f.disk->hold = true;
    ISSUE(2, one_page, .command = 0x60, .lba = 16, .feature = 8, .count = 2 << 3);
    ISSUE(5, one_page, .command = 0x60, .lba = 24, .feature = 8, .count = 5 << 3);
    f.disk->result = -5;
    fake_disk_finish(f.disk, 1);
    assert_int_equal(get(IS), 0x40000008);
    assert_int_equal(get(TFD), 0x4051);
    assert_int_equal(get(SACT), 0x24); /* none of them is done */
    assert_int_equal((get(CMD) >> 8) & 0x1f, 5);
    ISSUE(6, sector, .command = 0xec); /* nothing runs until it is restarted */
    assert_int_equal(get(CI), 0x40);
    f.disk->result = 0;
    set(CMD, 0x10);
    assert_int_equal(get(CMD) & 0x8000, 0x8000); /* still reading */
    fake_disk_finish(f.disk, 0);
    stop_and_start();
    f.disk->hold = false;
    ISSUE(0, sector, .command = 0x2f, .lba = 0x10, .count = 1);
    assert_int_equal(get(IS), 0x02);
    assert_int_equal(byte_at(DATA), 5);
    assert_int_equal(byte_at(DATA + 3), 0x40);
}

static void test_wrong_tag_is_refused(void **state)
{
    (void)state;
    ISSUE(2, one_page, .command = 0x60, .lba = 16, .feature = 8, .count = 3 << 3);
    assert_int_equal(get(IS), 0x40000008);
    assert_int_equal(get(TFD), 0x0451);
    assert_int_equal(f.disk->count[BLOCK_READ], 0);
}

static void test_task_file_error(void **state)
{
    (void)state;
    ISSUE(7, one_page, .command = 0x25, .lba = SECTORS, .count = 8);
    assert_int_equal(get(IS), 0x40000001);
    assert_int_equal(get(TFD), 0x1051);
    assert_int_equal(get(CI), 0x80); /* stays, and CCS names it */
    assert_int_equal((get(CMD) >> 8) & 0x1f, 7);
    stop_and_start();
    ISSUE(7, one_page, .command = 0x25, .lba = SECTORS - 8, .count = 8);
    assert_int_equal(get(CI), 0);
    assert_int_equal(get(TFD), 0x50);
}

/* After an error that leaves the drive busy. */
static void reset_and_start(void)
{
    set(CMD, 0x10);
    set(SCTL, 1);
    set(SCTL, 0);
    set(SERR, UINT32_MAX);
    stop_and_start();
}

static void test_addresses_outside_memory(void **state)
{
    const struct ahci_prd beyond[] = {{0x7fffffff0000, 4096}};
    const struct ahci_prd edge[] = {{DRIVER_RAM - 2048, 4096}};

    (void)state;
    ISSUE(0, beyond, .command = 0x25, .count = 8);
    assert_int_equal(get(IS), 0x20000000);
    assert_int_equal(get(CI), 1);
    reset_and_start();
    ISSUE(0, edge, .command = 0xec); /* its first half is enough */
    assert_int_equal(get(IS), 0x02);
    set(IS, UINT32_MAX);
    ISSUE(0, edge, .command = 0x25, .count = 8);
    assert_int_equal(get(IS), 0x20000000);
    reset_and_start();
    set(0x00, 0xfffffc00); /* the command list */
    set(CI, 1);
    assert_int_equal(get(IS), 0x20000000);
    stop_and_start();
    set(0x00, AHCI_LIST(0));
    mem_write64(f.mem, AHCI_LIST(0) + 8, 0xffffffffffffff80); /* the table */
    set(CI, 1);
    assert_int_equal(get(IS), 0x20000000);
    stop_and_start();
    mem_write64(f.mem, AHCI_LIST(0) + 8, AHCI_TABLE(0, 0));
    mem_write32(f.mem, AHCI_TABLE(0, 0), 0x34); /* no H2D FIS */
    set(CI, 1);
    assert_int_equal(get(IS), 0x08000000);
}

static void test_trim(void **state)
{
    (void)state;
    assert_int_equal(mem_fill(f.mem, DATA, 0, 512), 0);
    mem_write64(f.mem, DATA + 8, 100 | 8ull << 48);
    mem_write64(f.mem, DATA + 504, 200 | 16ull << 48);
    ISSUE(0, sector, .command = 0x06, .feature = 1, .count = 1);
    assert_int_equal(get(IS), 0x01);
    assert_int_equal(f.disk->count[BLOCK_DISCARD], 2);
    assert_int_equal(f.disk->discarded, 24 * 512);
    ISSUE(0, sector, .command = 0x06, .feature = 1, .count = 2); /* memory for half of the list */
    assert_int_equal(get(TFD), 0x0451);
}

static void test_comreset_during_io(void **state)
{
    (void)state;
    f.disk->hold = true;
    ISSUE(0, one_page, .command = 0x25, .lba = 0, .count = 8);
    assert_int_equal(get(TFD) & 0x80, 0x80);
    assert_int_equal(get(CI), 1);
    set(CMD, 0x10);
    assert_int_equal(get(CI), 0);
    assert_int_equal(get(CMD) & 0x8000, 0x8000); /* the transfer still runs */
    set(SCTL, 1);
    assert_int_equal(get(SSTS), 0);
    set(SCTL, 0);
    assert_int_equal(get(SSTS), 0); /* not before nothing can reach memory any more */
    fake_disk_finish(f.disk, 0);
    assert_int_equal(get(SSTS), 0x123);
    assert_int_equal(get(CMD) & 0x8000, 0);
    assert_int_equal(get(TFD), 0x0150);
    assert_int_equal(get(IS) & 0x01, 0); /* the command's end was not told */
    assert_int_equal(get(SERR), 0x04010000);
    f.disk->hold = false;
    set(CMD, 0x11);
    ISSUE(0, one_page, .command = 0x25, .lba = 0, .count = 8);
    assert_int_equal(get(CI), 0);
}

/* Stopped and started again while the old command still runs: the new one waits for its end. */
static void test_restart_during_io(void **state)
{
    (void)state;
    f.disk->hold = true;
    ISSUE(0, one_page, .command = 0x25, .lba = 0, .count = 8);
    set(CMD, 0x10);
    set(CMD, 0x11);
    ISSUE(0, one_page, .command = 0x25, .lba = 8, .count = 8);
    assert_int_equal(f.disk->held_count, 1);
    assert_int_equal(get(CI), 1);
    fake_disk_finish(f.disk, 0);
    assert_int_equal(f.disk->held_count, 1);
    assert_int_equal(get(CI), 1);
    assert_int_equal(get(IS), 0);
    fake_disk_finish(f.disk, 0);
    assert_int_equal(get(CI), 0);
    assert_int_equal(get(IS), 1);
    assert_int_equal(byte_at(DATA), 9);
}

static void test_adapter_reset_during_io(void **state)
{
    (void)state;
    f.disk->hold = true;
    ISSUE(0, one_page, .command = 0x25, .lba = 0, .count = 8);
    ahci_write(&f.a, 0x04, 1);
    assert_int_equal(ahci_read(&f.a, 0x04) & 1, 1);
    set(IE, 0xff); /* goes nowhere */
    fake_disk_finish(f.disk, 0);
    assert_int_equal(ahci_read(&f.a, 0x04), 0x80000000);
    assert_int_equal(get(IE), 0);
    assert_int_equal(get(CMD), 0x00040006);
    assert_int_equal(get(0x00), AHCI_LIST(0)); /* stays (10.4.3) */
    assert_int_equal(get(SSTS), 0x123);
    assert_int_equal(ahci_read(&f.a, 0x08), 0);
}

static void test_software_reset(void **state)
{
    (void)state;
    issue_on(0, 0, (struct ahci_issue){.is_control = true, .control = 4, .flags = 0x500}, 0, NULL);
    assert_int_equal(get(CI), 0);
    assert_int_equal(get(TFD) & 0x80, 0);
    issue_on(0, 1, (struct ahci_issue){.is_control = true, .control = 0}, 0, NULL);
    assert_int_equal(get(CI), 0);
    assert_int_equal(get(TFD), 0x0150);
    assert_int_equal(get(SIG), 0x101);
    issue_on(1, 0, (struct ahci_issue){.is_control = true, .control = 4, .flags = 0x500}, 0, NULL);
    issue_on(1, 1, (struct ahci_issue){.is_control = true, .control = 0}, 0, NULL);
    assert_int_equal(ahci_port_get(&f.a, 1, SIG), 0xeb140101);
}

static void test_command_list_override(void **state)
{
    const struct ahci_prd beyond[] = {{0x7fffffff0000, 4096}};

    (void)state;
    ISSUE(0, beyond, .command = 0x25, .count = 8);
    set(CMD, 0x10);
    ISSUE(0, sector, .command = 0xec); /* ST is 0: not issued */
    assert_int_equal(get(CI), 0);
    set(CMD, 0x18);
    assert_int_equal(get(TFD) & 0x88, 0);
    assert_int_equal(get(CMD) & 0x08, 0); /* reads as done */
    set(IS, UINT32_MAX);
    set(CMD, 0x11);
    ISSUE(0, sector, .command = 0xec);
    assert_int_equal(get(IS), 0x02);
}

static void packet(unsigned slot, const uint8_t *cdb, uint32_t len)
{
    const struct ahci_prd prd[] = {{DATA, len ? len : 2}};

    issue_on(1, slot, (struct ahci_issue){.command = 0xa0, .feature = 1, .cdb = cdb}, len ? 1 : 0,
             prd);
}

static void test_packets(void **state)
{
    const uint8_t ready[12] = {0}, read[12] = {0x28, 0, 0, 0, 0, 3, 0, 0, 2};
    const uint8_t sense[12] = {0x03, 0, 0, 0, 18};

    (void)state;
    packet(0, ready, 0);
    assert_int_equal(ahci_port_get(&f.a, 1, IS), 0x40000001);
    assert_int_equal(ahci_port_get(&f.a, 1, TFD), 0x6451); /* unit attention */
    ahci_port_set(&f.a, 1, CMD, 0x01000010);
    ahci_port_set(&f.a, 1, IS, UINT32_MAX);
    ahci_port_set(&f.a, 1, CMD, 0x01000011);
    packet(0, sense, 18);
    assert_int_equal(prdbc(1, 0), 18);
    assert_int_equal(byte_at(DATA + 12), 0x29);
    assert_int_equal(ahci_port_get(&f.a, 1, IS), 0x01); /* DMA: no PIO setup */
    issue_on(1, 2, (struct ahci_issue){.command = 0xa0, .cdb = sense}, 1, sector);
    assert_int_equal(ahci_port_get(&f.a, 1, IS), 0x03);
    assert_int_equal(byte_at(AHCI_FIS(1) + 0x30), 18); /* bytes it said it would move */
    packet(1, read, 4096);
    assert_int_equal(ahci_port_get(&f.a, 1, CI), 0);
    assert_int_equal(ahci_port_get(&f.a, 1, TFD), 0x50);
    assert_int_equal(prdbc(1, 1), 4096);
    assert_int_equal(byte_at(DATA), 13);
    assert_int_equal(byte_at(DATA + 4095), 20);
    f.iso->result = -5;
    packet(1, read, 4096);
    assert_int_equal(ahci_port_get(&f.a, 1, TFD), 0x3451);
}

static void test_interrupts(void **state)
{
    (void)state;
    set(IE, 0x01); /* only the D2H register FIS */
    ISSUE(0, sector, .command = 0xec);
    assert_int_equal(ahci_read(&f.a, 0x08), 0);
    assert_int_equal(f.dm.msi_count[MSI], 0);
    ISSUE(0, one_page, .command = 0x25, .count = 8);
    assert_int_equal(f.dm.msi_count[MSI], 1);
    ISSUE(0, one_page, .command = 0x25, .count = 8); /* not served yet: no second message */
    assert_int_equal(f.dm.msi_count[MSI], 1);
    ahci_write(&f.a, 0x08, 1); /* cleared in the wrong order: it comes back, with a message */
    assert_int_equal(ahci_read(&f.a, 0x08), 1);
    assert_int_equal(f.dm.msi_count[MSI], 2);
    set(IS, 0x01);
    ahci_write(&f.a, 0x08, 1);
    assert_int_equal(ahci_read(&f.a, 0x08), 0);
    assert_int_equal(f.dm.msi_count[MSI], 2);
    assert_int_equal(
        f.dm.gsi_level[16] | f.dm.gsi_level[17] | f.dm.gsi_level[18] | f.dm.gsi_level[19], 0);
    driver_config_write(&f.a.d, 0x82, 2, 0); /* to the pin */
    ISSUE(0, one_page, .command = 0x25, .count = 8);
    assert_int_equal(f.dm.gsi_level[17], 1);
    driver_config_write(&f.a.d, 0x82, 2, 1);
    assert_int_equal(f.dm.gsi_level[17], 0);
    assert_int_equal(f.dm.msi_count[MSI], 3);
    driver_config_write(&f.a.d, 0x82, 2, 0);
    assert_int_equal(f.dm.gsi_level[17], 1);
    ahci_write(&f.a, 0x04, 0); /* interrupts off */
    assert_int_equal(f.dm.gsi_level[17], 0);
    ahci_write(&f.a, 0x04, 2);
    set(IS, UINT32_MAX);
    ahci_write(&f.a, 0x08, UINT32_MAX);
    assert_int_equal(f.dm.gsi_level[17], 0);
    driver_config_write(&f.a.d, 0x82, 2, 1); /* a message waits for bus mastering */
    driver_config_write(&f.a.d, 0x04, 2, 2);
    ISSUE(0, one_page, .command = 0x25, .count = 8);
    assert_int_equal(f.dm.msi_count[MSI], 3);
    driver_config_write(&f.a.d, 0x04, 2, 6);
    assert_int_equal(f.dm.msi_count[MSI], 4);
}

static void test_prd_interrupt(void **state)
{
    const struct ahci_prd pieces[] = {{DATA, 512 | AHCI_PRD_INTERRUPT}, {DATA + 512, 512}};

    (void)state;
    ISSUE(0, pieces, .command = 0x25, .count = 2);
    assert_int_equal(get(IS), 0x21);
}

static void test_hot_plug(void **state)
{
    struct fake_disk *disk = fake_disk_create(65536);
    bool closed = false;

    (void)state;
    disk->closed = &closed;
    ahci_port_start(&f.a, 3);
    assert_int_equal(ahci_plug(f.hba, 3, ATA_DISK, &disk->block, 9), 0);
    assert_int_equal(ahci_port_get(&f.a, 3, SSTS), 0x123);
    assert_int_equal(ahci_port_get(&f.a, 3, IS), 0x00400040);
    assert_int_equal(f.dm.msi_count[MSI], 1);
    assert_int_equal(driver_config_read(&f.a.d, 0x93, 1), 0x0b);
    ahci_port_set(&f.a, 3, SERR, UINT32_MAX);
    issue_on(3, 0, (struct ahci_issue){.command = 0xec}, 1, sector);
    assert_int_equal(mem_read32(f.mem, DATA + 120), 128);
    ahci_unplug(f.hba, 3);
    assert_true(closed);
    assert_int_equal(ahci_port_get(&f.a, 3, SSTS), 0);
    assert_int_equal(ahci_port_get(&f.a, 3, IS) & 0x00400040, 0x00400000);
    issue_on(3, 0, (struct ahci_issue){.command = 0xec}, 1, sector);
    assert_int_equal(ahci_port_get(&f.a, 3, CI), 1); /* nobody answers */
    ahci_unplug(f.hba, 3);
    disk = fake_disk_create(65536);
    assert_int_equal(ahci_plug(f.hba, 0, ATA_DISK, &disk->block, 9), -16);
}

static void *unplug_main(void *opaque)
{
    (void)opaque;
    ahci_unplug(f.hba, 0);
    return NULL;
}

/* Pulled out in the middle of a read: the drive goes when the back end has let go of guest memory.
 */
static void test_unplug_waits_for_io(void **state)
{
    bool closed = false;
    pthread_t thread;

    (void)state;
    f.disk->closed = &closed;
    f.disk->hold = true;
    ISSUE(0, one_page, .command = 0x60, .feature = 8);
    assert_int_equal(f.disk->held_count, 1);
    assert_int_equal(pthread_create(&thread, NULL, unplug_main, NULL), 0);
    while (driver_config_read(&f.a.d, 0x93, 1) != 0x02) /* it has begun */
        ;
    assert_false(closed);
    fake_disk_finish(f.disk, 0);
    pthread_join(thread, NULL);
    assert_true(closed);
    assert_int_equal(get(SSTS), 0);
    assert_int_equal(get(IS) & 0x08, 0);
}

static void test_media_change(void **state)
{
    struct fake_disk *other = fake_disk_create(16 * 2048);
    const uint8_t capacity[12] = {0x25}, lock[12] = {0x1e, 0, 0, 0, 1};

    (void)state;
    assert_int_equal(ahci_eject(f.hba, 0), -19); /* a disk has no tray */
    assert_int_equal(ahci_insert(f.hba, 1, &other->block), 0);
    packet(0, capacity, 8);
    assert_int_equal(ahci_port_get(&f.a, 1, TFD), 0x6451); /* changed */
    ahci_port_set(&f.a, 1, CMD, 0x10);
    ahci_port_set(&f.a, 1, CMD, 0x11);
    packet(0, capacity, 8);
    assert_int_equal(mem_read32(f.mem, DATA), 0x0f000000);
    packet(0, lock, 0);
    assert_int_equal(ahci_eject(f.hba, 1), -16);
}

/* What one adapter saves, another goes on with. */
static void test_state(void **state)
{
    struct device *dev = f.dm.machine->devices;
    struct state_buf buf;
    struct error err = {0};
    size_t pos = 0;

    (void)state;
    assert_string_equal(dev->ops->type, "ahci");
    ISSUE(7, one_page, .command = 0x25, .lba = SECTORS, .count = 8); /* halted by an error */
    device_lock(dev);
    dev->ops->saving(dev);
    state_buf_init(&buf);
    assert_int_equal(state_save(&buf, dev->ops->state, dev->name, f.hba), 0);
    device_unlock(dev);
    machine_reset_devices(f.dm.machine);
    pci_host_assign(f.dm.host);
    assert_int_equal(get(CI), 0);
    assert_int_equal(state_load(buf.data, buf.len, &pos, dev->ops->state, dev->name, f.hba, &err),
                     0);
    assert_int_equal(dev->ops->loaded(dev), 0);
    assert_int_equal(f.dm.msi_count[MSI], 2); /* told again: rather twice than never */
    assert_int_equal(get(IS), 0x40000001);
    assert_int_equal(get(CI), 0x80);
    assert_int_equal(get(TFD), 0x1051);
    stop_and_start();
    ISSUE(7, one_page, .command = 0x25, .lba = 5, .count = 8);
    assert_int_equal(get(CI), 0);
    assert_int_equal(byte_at(DATA), 6);
    state_buf_release(&buf);
}

static void *reset_main(void *opaque)
{
    (void)opaque;
    machine_reset_devices(f.dm.machine);
    return NULL;
}

static void test_machine_reset_waits_for_io(void **state)
{
    pthread_t thread;

    (void)state;
    f.disk->hold = true;
    ISSUE(0, one_page, .command = 0x25, .count = 8);
    assert_int_equal(pthread_create(&thread, NULL, reset_main, NULL), 0);
    fake_disk_finish(f.disk, 0);
    pthread_join(thread, NULL);
    assert_int_equal(f.disk->held_count, 0);
    pci_host_assign(f.dm.host);
    assert_int_equal(get(CMD), 0x00040006);
    assert_int_equal(get(0x00), 0);
    assert_int_equal(get(SSTS), 0x123);
}

/* Commands that complete at once, one after the other, on the thread that issued the first. */
static void test_all_slots(void **state)
{
    (void)state;
    set(CMD, 0x10);
    for (unsigned slot = 0; slot < 32; slot++) {
        const struct ahci_prd prd[] = {{DATA + slot * 512, 512}};
        const struct ahci_issue issue = {.command = 0x25, .device = 0x40, .lba = slot, .count = 1};

        ahci_build(&f.a, 0, slot, &issue, prd, 1);
    }
    set(CMD, 0x11);
    set(CI, UINT32_MAX);
    assert_int_equal(get(CI), 0);
    for (unsigned slot = 0; slot < 32; slot++)
        assert_int_equal(byte_at(DATA + slot * 512), slot + 1);
}

#define STARTED(test) cmocka_unit_test_setup_teardown(test, setup_started, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_identity, setup, teardown),
        cmocka_unit_test_setup_teardown(test_links_after_power_on, setup, teardown),
        STARTED(test_identify),
        STARTED(test_dma_read_and_write),
        STARTED(test_many_small_pieces),
        STARTED(test_memory_ends_too_soon),
        STARTED(test_queued),
        STARTED(test_queued_error),
        STARTED(test_wrong_tag_is_refused),
        STARTED(test_task_file_error),
        STARTED(test_addresses_outside_memory),
        STARTED(test_trim),
        STARTED(test_comreset_during_io),
        STARTED(test_restart_during_io),
        STARTED(test_adapter_reset_during_io),
        STARTED(test_software_reset),
        STARTED(test_command_list_override),
        STARTED(test_packets),
        STARTED(test_interrupts),
        STARTED(test_prd_interrupt),
        STARTED(test_hot_plug),
        STARTED(test_unplug_waits_for_io),
        STARTED(test_media_change),
        STARTED(test_state),
        STARTED(test_machine_reset_waits_for_io),
        STARTED(test_all_slots),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
