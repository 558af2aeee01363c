#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "board/acpi/acpi.h"
#include "board/acpi/dsdt.h"
#include "chip/acpi_pm.h"
#include "chip/ioapic.h"
#include "device/pci.h"
#include "x86/arch.h"

#define ACPI_OEM       "LODGE "
#define ACPI_OEM_TABLE "LODGEPC "
#define ACPI_ALIGNMENT 64u /* what the FACS needs */

struct acpi_header { /* 5.2.6 */
    char signature[4];
    uint32_t length;
    uint8_t revision, checksum;
    char oem_id[6], oem_table_id[8];
    uint32_t oem_revision;
    char creator_id[4];
    uint32_t creator_revision;
} __attribute__((packed));

struct acpi_address { /* generic address structure, 5.2.3.2 */
    uint8_t space, bit_width, bit_offset, access;
    uint64_t address;
} __attribute__((packed));

struct acpi_rsdp { /* 5.2.5.3 */
    char signature[8];
    uint8_t checksum;
    char oem_id[6];
    uint8_t revision;
    uint32_t rsdt;
    uint32_t length;
    uint64_t xsdt;
    uint8_t extended_checksum, reserved[3];
} __attribute__((packed));

struct acpi_facs { /* 5.2.10 */
    char signature[4];
    uint32_t length, hardware_signature, waking_vector, global_lock, flags;
    uint64_t x_waking_vector;
    uint8_t version, reserved[3];
    uint32_t ospm_flags;
    uint8_t reserved2[24];
} __attribute__((packed));

struct acpi_fadt { /* 5.2.9, revision 6 */
    struct acpi_header header;
    uint32_t firmware_ctrl, dsdt;
    uint8_t reserved, preferred_profile;
    uint16_t sci_int;
    uint32_t smi_cmd;
    uint8_t acpi_enable, acpi_disable, s4bios_req, pstate_cnt;
    uint32_t pm1a_evt, pm1b_evt, pm1a_cnt, pm1b_cnt, pm2_cnt, pm_tmr, gpe0, gpe1;
    uint8_t pm1_evt_len, pm1_cnt_len, pm2_cnt_len, pm_tmr_len, gpe0_len, gpe1_len, gpe1_base, cst;
    uint16_t p_lvl2_lat, p_lvl3_lat, flush_size, flush_stride;
    uint8_t duty_offset, duty_width, day_alarm, month_alarm, century;
    uint16_t iapc_boot_arch;
    uint8_t reserved2;
    uint32_t flags;
    struct acpi_address reset_reg;
    uint8_t reset_value;
    uint16_t arm_boot_arch;
    uint8_t minor;
    uint64_t x_firmware_ctrl, x_dsdt;
    struct acpi_address x_pm1a_evt, x_pm1b_evt, x_pm1a_cnt, x_pm1b_cnt, x_pm2_cnt, x_pm_tmr,
        x_gpe0, x_gpe1, sleep_control, sleep_status;
    uint64_t hypervisor;
} __attribute__((packed));

static_assert(sizeof(struct acpi_fadt) == 276, "FADT of ACPI 6");
static_assert(sizeof(struct acpi_facs) == 64, "FACS");
static_assert(sizeof(struct acpi_rsdp) == ACPI_RSDP_SIZE, "RSDP of ACPI 2");

#define FADT_WBINVD         (1u << 0)
#define FADT_PROC_C1        (1u << 2)
#define FADT_SLEEP_BUTTON   (1u << 5)  /* set: no fixed sleep button */
#define FADT_FIX_RTC        (1u << 6)  /* set: no RTC wake in fixed registers */
#define FADT_TMR_32         (1u << 8)
#define FADT_RESET          (1u << 10)
#define FADT_BOOT_LEGACY    (1u << 0)
#define FADT_BOOT_8042      (1u << 1)
#define FADT_BOOT_NO_VGA    (1u << 2)
#define FADT_BOOT_NO_ASPM   (1u << 4)

static uint8_t acpi_sum(const void *data, size_t len)
{
    const uint8_t *bytes = data;
    uint8_t sum = 0;

    for (size_t i = 0; i < len; i++)
        sum = (uint8_t)(sum + bytes[i]);
    return sum;
}

static struct acpi_header acpi_header(const char *signature, uint8_t revision, size_t length)
{
    struct acpi_header header = {.length = (uint32_t)length,
                                 .revision = revision,
                                 .oem_revision = 1,
                                 .creator_revision = 1};

    memcpy(header.signature, signature, 4);
    memcpy(header.oem_id, ACPI_OEM, 6);
    memcpy(header.oem_table_id, ACPI_OEM_TABLE, 8);
    memcpy(header.creator_id, "LDGE", 4);
    return header;
}

/* Starts a table on its boundary; bytes are added to `aml` until acpi_table_end(). */
static uint32_t acpi_table_begin(struct acpi_tables *tables, struct aml *aml)
{
    tables->used = (uint32_t)align_up(tables->used, ACPI_ALIGNMENT);
    *aml = (struct aml){tables->image + tables->used, 0, sizeof(tables->image) - tables->used,
                        tables->used >= sizeof(tables->image)};
    return ACPI_AREA + tables->used;
}

/* Length and checksum of a table that starts with a header; the FACS and RSDP have none. */
static void acpi_table_seal(uint8_t *table, size_t len)
{
    uint32_t length = (uint32_t)len;

    memcpy(table + offsetof(struct acpi_header, length), &length, sizeof(length));
    table[offsetof(struct acpi_header, checksum)] = 0;
    table[offsetof(struct acpi_header, checksum)] = (uint8_t)-acpi_sum(table, len);
}

static int acpi_table_end(struct acpi_tables *tables, const struct aml *aml, bool has_header)
{
    struct acpi_table_place *place = &tables->tables[tables->count];

    if (aml->overflow || tables->count == ACPI_TABLES_MAX)
        return -ENOSPC;
    if (has_header)
        acpi_table_seal(aml->data, aml->len);
    memcpy(place->signature, aml->data, 4);
    place->offset = tables->used;
    place->length = (uint32_t)aml->len;
    tables->count++;
    tables->used += (uint32_t)aml->len;
    return 0;
}

/* An address is at `at`, which is one too. */
static void acpi_note_pointer(struct acpi_tables *tables, uint32_t at, uint8_t size)
{
    BUG_ON(tables->pointer_count == ACPI_POINTERS_MAX);
    tables->pointers[tables->pointer_count++] = (struct acpi_pointer){at - ACPI_AREA, size};
}

static struct acpi_address acpi_port(uint32_t port, uint8_t bytes)
{
    return (struct acpi_address){.space = 1, .bit_width = (uint8_t)(bytes * 8),
                                 .access = bytes == 1 ? 1 : bytes == 2 ? 2 : bytes == 4 ? 3 : 0,
                                 .address = port};
}

static int acpi_build_dsdt(const struct acpi_config *config, struct acpi_tables *tables,
                           uint32_t *at)
{
    struct acpi_header header = acpi_header("DSDT", 2, 0);
    struct aml aml;

    *at = acpi_table_begin(tables, &aml);
    aml_bytes(&aml, &header, sizeof(header));
    dsdt_write(&aml, config);
    return acpi_table_end(tables, &aml, true);
}

static int acpi_build_facs(struct acpi_tables *tables, uint32_t *at)
{
    struct acpi_facs facs = {.length = sizeof(facs), .version = 2};
    struct aml aml;

    memcpy(facs.signature, "FACS", 4);
    *at = acpi_table_begin(tables, &aml);
    aml_bytes(&aml, &facs, sizeof(facs));
    return acpi_table_end(tables, &aml, false);
}

static void acpi_fill_pm(struct acpi_fadt *fadt)
{
    fadt->sci_int = ACPI_SCI;
    fadt->pm1a_evt = ACPI_PM_BASE + ACPI_PM1_EVENT;
    fadt->pm1a_cnt = ACPI_PM_BASE + ACPI_PM1_CONTROL;
    fadt->pm_tmr = ACPI_PM_BASE + ACPI_PM_TIMER;
    fadt->gpe0 = ACPI_PM_BASE + ACPI_GPE0;
    fadt->pm1_evt_len = 4;
    fadt->pm1_cnt_len = 2;
    fadt->pm_tmr_len = 4;
    fadt->gpe0_len = 16;
    fadt->x_pm1a_evt = acpi_port(fadt->pm1a_evt, 4);
    fadt->x_pm1a_evt.access = 2; /* two 16-bit registers */
    fadt->x_pm1a_cnt = acpi_port(fadt->pm1a_cnt, 2);
    fadt->x_pm_tmr = acpi_port(fadt->pm_tmr, 4);
    fadt->x_gpe0 = acpi_port(fadt->gpe0, 16);
    fadt->x_gpe0.access = 1;
    fadt->p_lvl2_lat = 0xffff; /* no C2, no C3 */
    fadt->p_lvl3_lat = 0xffff;
    fadt->reset_reg = acpi_port(ACPI_RESET_PORT, 1);
    fadt->reset_value = ACPI_RESET_VALUE;
}

/* No SMI_CMD: the machine is always in ACPI mode. */
static int acpi_build_fadt(const struct acpi_config *config, struct acpi_tables *tables,
                           uint32_t facs, uint32_t dsdt, uint32_t *at)
{
    struct acpi_fadt fadt = {
        .header = acpi_header("FACP", 6, sizeof(fadt)),
        .firmware_ctrl = facs,
        .dsdt = dsdt,
        .x_dsdt = dsdt,
        .minor = 3,
        .century = 0x32,
        .iapc_boot_arch = (uint16_t)(FADT_BOOT_LEGACY | FADT_BOOT_NO_VGA | FADT_BOOT_NO_ASPM |
                                     (config->has_i8042 ? FADT_BOOT_8042 : 0)),
        .flags = FADT_WBINVD | FADT_PROC_C1 | FADT_SLEEP_BUTTON | FADT_FIX_RTC | FADT_TMR_32 |
                 FADT_RESET,
    };
    struct aml aml;

    memcpy(&fadt.hypervisor, "LODGE\0\0", 8);
    acpi_fill_pm(&fadt);
    *at = acpi_table_begin(tables, &aml);
    aml_bytes(&aml, &fadt, sizeof(fadt));
    acpi_note_pointer(tables, *at + offsetof(struct acpi_fadt, firmware_ctrl), 4);
    acpi_note_pointer(tables, *at + offsetof(struct acpi_fadt, dsdt), 4);
    acpi_note_pointer(tables, *at + offsetof(struct acpi_fadt, x_dsdt), 8);
    return acpi_table_end(tables, &aml, true);
}

/* MADT entries (5.2.12.2 and on). */
static void acpi_add_interrupt_override(struct aml *aml, uint8_t source, uint32_t gsi,
                                        uint16_t flags)
{
    const struct {
        uint8_t type, length, bus, source;
        uint32_t gsi;
        uint16_t flags;
    } __attribute__((packed)) entry = {2, sizeof(entry), 0, source, gsi, flags};

    aml_bytes(aml, &entry, sizeof(entry));
}

static void acpi_add_cpus(struct aml *aml, unsigned cpus)
{
    for (unsigned i = 0; i < cpus; i++) {
        const struct {
            uint8_t type, length, uid, apic_id;
            uint32_t flags;
        } __attribute__((packed)) lapic = {0, sizeof(lapic), (uint8_t)i, (uint8_t)i, 1};

        aml_bytes(aml, &lapic, sizeof(lapic));
    }
}

static int acpi_build_madt(const struct acpi_config *config, struct acpi_tables *tables,
                           uint32_t *at)
{
    const struct {
        struct acpi_header header;
        uint32_t lapic_base, flags; /* 1: the 8259 pair is there too */
    } __attribute__((packed)) madt = {acpi_header("APIC", 5, 0), APIC_DEFAULT_PHYS, 1};
    const struct {
        uint8_t type, length, id, reserved;
        uint32_t address, first_gsi;
    } __attribute__((packed)) ioapic = {1, sizeof(ioapic), 0, 0, IOAPIC_BASE, 0};
    static const uint8_t nmi[6] = {4, 6, 0xff, 0, 0, 1}; /* LINT1 of every CPU */
    struct aml aml;

    *at = acpi_table_begin(tables, &aml);
    aml_bytes(&aml, &madt, sizeof(madt));
    acpi_add_cpus(&aml, config->cpus);
    aml_bytes(&aml, &ioapic, sizeof(ioapic));
    acpi_add_interrupt_override(&aml, 0, 2, 0);
    acpi_add_interrupt_override(&aml, ACPI_SCI, ACPI_SCI, 0x000d); /* level, active high */
    aml_bytes(&aml, nmi, sizeof(nmi));
    return acpi_table_end(tables, &aml, true);
}

static int acpi_build_mcfg(struct acpi_tables *tables, uint32_t *at)
{
    const struct {
        struct acpi_header header;
        uint64_t reserved, base;
        uint16_t segment;
        uint8_t first_bus, last_bus;
        uint32_t reserved2;
    } __attribute__((packed)) mcfg = {
        .header = acpi_header("MCFG", 1, sizeof(mcfg)),
        .base = PCI_ECAM_BASE,
        .last_bus = 255,
    };
    struct aml aml;

    *at = acpi_table_begin(tables, &aml);
    aml_bytes(&aml, &mcfg, sizeof(mcfg));
    return acpi_table_end(tables, &aml, true);
}

static int acpi_build_xsdt(struct acpi_tables *tables, const uint64_t *entries, size_t count,
                           uint32_t *at)
{
    struct acpi_header header = acpi_header("XSDT", 1, 0);
    struct aml aml;

    *at = acpi_table_begin(tables, &aml);
    aml_bytes(&aml, &header, sizeof(header));
    aml_bytes(&aml, entries, count * sizeof(*entries));
    for (size_t i = 0; i < count; i++)
        acpi_note_pointer(tables, *at + (uint32_t)(sizeof(header) + i * sizeof(*entries)), 8);
    return acpi_table_end(tables, &aml, true);
}

/* For those who know ACPI 1.0 alone (boot loaders): the same tables. */
static int acpi_build_rsdt(struct acpi_tables *tables, const uint64_t *entries, size_t count,
                           uint32_t *at)
{
    struct acpi_header header = acpi_header("RSDT", 1, 0);
    struct aml aml;

    *at = acpi_table_begin(tables, &aml);
    aml_bytes(&aml, &header, sizeof(header));
    for (size_t i = 0; i < count; i++) {
        aml_bytes(&aml, &entries[i], 4);
        acpi_note_pointer(tables, *at + (uint32_t)(sizeof(header) + i * 4), 4);
    }
    return acpi_table_end(tables, &aml, true);
}

/* At the start of the area, which was kept for it: guests scan for it on 16-byte boundaries. */
static void acpi_put_rsdp(struct acpi_tables *tables, uint32_t rsdt, uint32_t xsdt)
{
    struct acpi_rsdp rsdp = {.revision = 2, .length = sizeof(rsdp), .rsdt = rsdt, .xsdt = xsdt};

    memcpy(rsdp.signature, "RSD PTR ", 8);
    memcpy(rsdp.oem_id, ACPI_OEM, 6);
    rsdp.checksum = (uint8_t)-acpi_sum(&rsdp, 20);
    rsdp.extended_checksum = (uint8_t)-acpi_sum(&rsdp, sizeof(rsdp));
    memcpy(tables->image, &rsdp, sizeof(rsdp));
    tables->rsdp = ACPI_AREA;
}

int acpi_build(const struct acpi_config *config, struct acpi_tables *tables)
{
    uint32_t dsdt = 0, facs = 0, fadt = 0, madt = 0, mcfg = 0, rsdt = 0, xsdt = 0;
    int r;

    memset(tables, 0, sizeof(*tables));
    tables->used = sizeof(struct acpi_rsdp);
    r = acpi_build_dsdt(config, tables, &dsdt);
    if (r == 0)
        r = acpi_build_facs(tables, &facs);
    if (r == 0)
        r = acpi_build_fadt(config, tables, facs, dsdt, &fadt);
    if (r == 0)
        r = acpi_build_madt(config, tables, &madt);
    if (r == 0)
        r = acpi_build_mcfg(tables, &mcfg);
    if (r == 0) {
        const uint64_t entries[] = {fadt, madt, mcfg};

        r = acpi_build_xsdt(tables, entries, ARRAY_SIZE(entries), &xsdt);
        if (r == 0)
            r = acpi_build_rsdt(tables, entries, ARRAY_SIZE(entries), &rsdt);
    }
    if (r == 0)
        acpi_put_rsdp(tables, rsdt, xsdt);
    return r;
}

static int acpi_dump_table(const struct acpi_tables *tables, const struct acpi_table_place *place,
                           const char *directory, struct error *err)
{
    char path[4096], name[5];
    FILE *file;
    int r = 0;

    for (unsigned i = 0; i < sizeof(name); i++)
        name[i] = (char)tolower((unsigned char)place->signature[i]);
    snprintf(path, sizeof(path), "%.4000s/%s.dat", directory, name);
    file = fopen(path, "wbe");
    if (!file)
        return error_set(err, -errno, "cannot write '%s': %s", path, strerror(errno));
    if (fwrite(tables->image + place->offset, place->length, 1, file) != 1)
        r = -EIO;
    if (fclose(file) != 0)
        r = -errno;
    if (r < 0)
        return error_set(err, r, "cannot write '%s': %s", path, strerror(-r));
    return 0;
}

int acpi_dump(const struct acpi_tables *tables, const char *directory, struct error *err)
{
    int r = 0;

    if (mkdir(directory, 0777) < 0 && errno != EEXIST)
        return error_set(err, -errno, "cannot make the directory '%s': %s", directory,
                         strerror(errno));
    for (unsigned i = 0; r == 0 && i < tables->count; i++)
        r = acpi_dump_table(tables, &tables->tables[i], directory, err);
    return r;
}
