#include "cli/options.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

#define MEMORY_DEFAULT (512ull << 20)
#define MEMORY_MINIMUM (2ull << 20)

struct option {
    const char *name;
    const char *argument; /* NULL: a flag */
    const char *help;
    int (*set)(struct run_options *options, const char *value, struct error *err);
};

static int set_engine(struct run_options *options, const char *value, struct error *err)
{
    const char *names[8] = {"auto"};
    const char *nearest;
    size_t count = 1;

    options->engine = value;
    if (strcmp(value, "auto") == 0 || strcmp(value, "metal") == 0 || engine_find(value))
        return 0;
    for (unsigned i = 0; engines[i]; i++)
        names[count++] = engines[i]->name;
    nearest = cli_nearest(value, names, count);
    return error_set(err, -EINVAL, "--engine: there is no engine '%s' (%s%s%s)", value,
                     nearest ? "did you mean '" : "it takes auto, kvm, soft or metal",
                     nearest ? nearest : "", nearest ? "'?" : "");
}

static int set_cpus(struct run_options *options, const char *value, struct error *err)
{
    uint64_t cpus;

    if (cli_parse_number(value, 1, VM_CPUS_MAX, &cpus))
        return error_set(err, -EINVAL, "--cpus: '%s' is not a number from 1 to %u", value,
                         VM_CPUS_MAX);
    options->config.cpus = (unsigned)cpus;
    return 0;
}

static int set_memory(struct run_options *options, const char *value, struct error *err)
{
    uint64_t size;

    if (cli_parse_size(value, &size))
        return error_set(err, -EINVAL, "--memory: '%s' is not a size (write 512M or 2G)", value);
    if (size < MEMORY_MINIMUM || size & ~PAGE_MASK)
        return error_set(err, -EINVAL,
                         "--memory: '%s' is too small or not whole pages (write 512M or 2G)", value);
    options->config.memory = size;
    return 0;
}

static int set_code_cache(struct run_options *options, const char *value, struct error *err)
{
    uint64_t size;

    if (cli_parse_size(value, &size))
        return error_set(err, -EINVAL, "--code-cache: '%s' is not a size (write 48M or 128M)", value);
    if (size < ENGINE_CODE_CACHE_LEAST || size > ENGINE_CODE_CACHE_MOST)
        return error_set(err, -EINVAL, "--code-cache: '%s' is not between %lluM and %lluM", value,
                         ENGINE_CODE_CACHE_LEAST >> 20, ENGINE_CODE_CACHE_MOST >> 20);
    options->config.code_cache = size;
    return 0;
}

static int set_kernel(struct run_options *options, const char *value, struct error *err)
{
    (void)err;
    options->config.kernel = value;
    return 0;
}

static int set_firmware(struct run_options *options, const char *value, struct error *err)
{
    const char *vars = strstr(value, ",vars=");
    char *copy;

    if (!*value)
        return error_set(err, -EINVAL, "--firmware: which? (write bios, uefi or a file's name)");
    free(options->firmware_copy);
    options->firmware_copy = copy = strdup(value);
    if (!copy)
        return error_set(err, -ENOMEM, "out of memory");
    options->config.firmware.image = copy;
    options->config.firmware.vars = NULL;
    if (!vars)
        return 0;
    copy[vars - value] = '\0';
    options->config.firmware.vars = copy + (vars - value) + strlen(",vars=");
    if (strcmp(copy, "uefi") != 0 || !*options->config.firmware.vars)
        return error_set(err, -EINVAL, "--firmware: variables are written uefi,vars=FILE");
    return 0;
}

static int boot_word(struct firmware_options *firmware, const char *word, struct error *err)
{
    static const char *const words[] = {[FIRMWARE_BOOT_DISK] = "disk",
                                        [FIRMWARE_BOOT_CDROM] = "cdrom",
                                        [FIRMWARE_BOOT_NET] = "net"};
    const char *nearest;

    for (unsigned i = 0; i < ARRAY_SIZE(words); i++) {
        if (strcmp(word, words[i]) != 0)
            continue;
        for (unsigned at = 0; at < firmware->boot_count; at++) {
            if (firmware->boot[at] == (enum firmware_boot)i)
                return error_set(err, -EINVAL, "--boot: '%s' is there twice", word);
        }
        firmware->boot[firmware->boot_count++] = (enum firmware_boot)i;
        return 0;
    }
    nearest = cli_nearest(word, words, ARRAY_SIZE(words));
    return error_set(err, -EINVAL, "--boot: unknown word '%s' (%s%s)", word,
                     nearest ? "did you mean " : "it takes disk, cdrom and net",
                     nearest ? nearest : "");
}

static int set_boot(struct run_options *options, const char *value, struct error *err)
{
    char text[64], *rest = text, *word;
    int ret = 0;

    if (snprintf(text, sizeof(text), "%s", value) >= (int)sizeof(text))
        return error_set(err, -EINVAL, "--boot: too long");
    options->config.firmware.boot_count = 0;
    while (ret == 0 && (word = strsep(&rest, ",")))
        ret = boot_word(&options->config.firmware, word, err);
    return ret;
}

static int set_initrd(struct run_options *options, const char *value, struct error *err)
{
    if (options->config.initrd_count == VM_INITRDS_MAX)
        return error_set(err, -EINVAL, "--initrd: at most %u are possible", VM_INITRDS_MAX);
    options->config.initrd[options->config.initrd_count++] = value;
    return 0;
}

static int set_append(struct run_options *options, const char *value, struct error *err)
{
    (void)err;
    options->config.append = value;
    return 0;
}

static int disk_bus(enum pc_disk_bus *bus, const char *name, struct error *err)
{
    static const char *const names[] = {[PC_DISK_VIRTIO] = "virtio", [PC_DISK_AHCI] = "ahci"};

    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        if (strcmp(name, names[i]) == 0) {
            *bus = (enum pc_disk_bus)i;
            return 0;
        }
    }
    return error_set(err, -EINVAL, "--disk: there is no interface '%s' (it takes if=virtio and if=ahci)",
                     name);
}

static int disk_word(struct block_options *disk, enum pc_disk_bus *bus, const char *word,
                     struct error *err)
{
    static const char *const words[] = {"ro", "format=raw", "if=virtio", "if=ahci"};
    const char *nearest;

    if (strcmp(word, "ro") == 0) {
        disk->readonly = true;
        return 0;
    }
    if (strcmp(word, "format=raw") == 0) {
        disk->format = BLOCK_FORMAT_RAW;
        return 0;
    }
    if (strncmp(word, "format=", 7) == 0)
        return error_set(err, -EINVAL, "--disk: format '%s' is not supported (use raw)", word + 7);
    if (strncmp(word, "if=", 3) == 0)
        return disk_bus(bus, word + 3, err);
    nearest = cli_nearest(word, words, ARRAY_SIZE(words));
    return error_set(err, -EINVAL, "--disk: unknown word '%s' (%s%s)", word,
                     nearest ? "did you mean " : "it takes ro, format=raw and if=virtio|ahci",
                     nearest ? nearest : "");
}

static int set_disk(struct run_options *options, const char *value, struct error *err)
{
    struct block_options *disk;
    enum pc_disk_bus *bus;
    char *copy, *word, *rest;
    int ret = 0;

    if (options->config.disk_count == VM_DISKS_MAX)
        return error_set(err, -EINVAL, "--disk: at most %u are possible", VM_DISKS_MAX);
    copy = strdup(value);
    if (!copy)
        return error_set(err, -ENOMEM, "out of memory");
    options->storage[options->storage_count++] = copy;
    bus = &options->config.disk_bus[options->config.disk_count];
    disk = &options->config.disk[options->config.disk_count++];
    rest = copy;
    disk->path = strsep(&rest, ",");
    while (ret == 0 && (word = strsep(&rest, ",")))
        ret = disk_word(disk, bus, word, err);
    if (ret == 0 && !*disk->path)
        ret = error_set(err, -EINVAL, "--disk: which file? (write --disk FILE[,ro])");
    if (ret == 0 && disk->readonly && *bus == PC_DISK_AHCI)
        ret = error_set(err, -EINVAL,
                        "--disk: '%s': an ahci disk cannot be read-only (use if=virtio, or --cdrom)",
                        disk->path);
    return ret;
}

static int set_cdrom(struct run_options *options, const char *value, struct error *err)
{
    if (options->config.cdrom_count == VM_CDROMS_MAX)
        return error_set(err, -EINVAL, "--cdrom: at most %u are possible", VM_CDROMS_MAX);
    if (!*value)
        return error_set(err, -EINVAL, "--cdrom: which file? (write --cdrom FILE)");
    options->config.cdrom[options->config.cdrom_count++] =
        (struct block_options){.path = value, .readonly = true};
    return 0;
}

static int net_forward(struct net_user_options *net, char *word, struct error *err)
{
    struct net_forward *forward = &net->forward[net->forward_count];
    uint64_t host, guest;
    char *colon;

    if (net->forward_count == NET_FORWARDS_MAX)
        return error_set(err, -EINVAL, "--net: at most %u forwards are possible", NET_FORWARDS_MAX);
    *forward = (struct net_forward){0};
    if (strncmp(word, "forward=", 8) == 0)
        word += 8;
    else
        return error_set(err, -EINVAL,
                         "--net: unknown word '%s' (write user,forward=HOSTPORT:GUESTPORT)", word);
    if (strncmp(word, "udp:", 4) == 0) {
        forward->udp = true;
        word += 4;
    } else if (strncmp(word, "tcp:", 4) == 0) {
        word += 4;
    }
    colon = strchr(word, ':');
    if (colon)
        *colon++ = '\0';
    if (!colon || cli_parse_number(word, 1, 65535, &host) ||
        cli_parse_number(colon, 1, 65535, &guest))
        return error_set(err, -EINVAL, "--net: a forward is HOSTPORT:GUESTPORT, each 1 to 65535");
    forward->host_port = (uint16_t)host;
    forward->guest_port = (uint16_t)guest;
    net->forward_count++;
    return 0;
}

static int set_net(struct run_options *options, const char *value, struct error *err)
{
    char text[1024], *rest = text, *word;
    int ret = 0;

    if (snprintf(text, sizeof(text), "%s", value) >= (int)sizeof(text))
        return error_set(err, -EINVAL, "--net: too long");
    word = strsep(&rest, ",");
    if (strcmp(word, "none") == 0 && !rest) {
        options->config.net = false;
        return 0;
    }
    if (strcmp(word, "user") != 0)
        return error_set(err, -EINVAL, "--net: unknown network '%s' (it takes user or none)", word);
    options->config.net = true;
    while (ret == 0 && (word = strsep(&rest, ",")))
        ret = net_forward(&options->config.net_user, word, err);
    return ret;
}

static int set_serial(struct run_options *options, const char *value, struct error *err)
{
    static const struct {
        const char *word;
        enum vm_serial serial;
    } kinds[] = {
        {"stdio", VM_SERIAL_STDIO},
        {"none", VM_SERIAL_NONE},
        {"file:", VM_SERIAL_FILE},
        {"unix:", VM_SERIAL_UNIX},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(kinds); i++) {
        size_t len = strlen(kinds[i].word);
        bool path = kinds[i].word[len - 1] == ':';

        if (path ? strncmp(value, kinds[i].word, len) != 0 || !value[len]
                 : strcmp(value, kinds[i].word) != 0)
            continue;
        options->config.serial = kinds[i].serial;
        options->config.serial_path = path ? value + len : NULL;
        return 0;
    }
    return error_set(err, -EINVAL,
                     "--serial: '%s' is not stdio, none, file:PATH or unix:PATH", value);
}

static int set_cpu_model(struct run_options *options, const char *value, struct error *err)
{
    const char *const *names = cpu_model_names();
    const char *nearest;
    size_t count = 0;

    options->config.cpu_model = value;
    for (; names[count]; count++) {
        if (strcmp(names[count], value) == 0)
            return 0;
    }
    nearest = cli_nearest(value, names, count);
    return error_set(err, -EINVAL, "--cpu-model: there is no model '%s' (%s%s)", value,
                     nearest ? "did you mean " : "see 'lodge help run'", nearest ? nearest : "");
}

static int set_name(struct run_options *options, const char *value, struct error *err)
{
    (void)err;
    options->config.name = value;
    return 0;
}

static int set_no_reboot(struct run_options *options, const char *value, struct error *err)
{
    (void)value, (void)err;
    options->config.no_reboot = true;
    return 0;
}

static int set_debug_exit(struct run_options *options, const char *value, struct error *err)
{
    (void)value, (void)err;
    options->config.debug_exit = true;
    return 0;
}

static int set_dump_acpi(struct run_options *options, const char *value, struct error *err)
{
    (void)err;
    options->dump_acpi = value;
    return 0;
}

static int set_stats(struct run_options *options, const char *value, struct error *err)
{
    (void)value, (void)err;
    options->config.stats = true;
    return 0;
}

static int set_verbose(struct run_options *options, const char *value, struct error *err)
{
    (void)value, (void)err;
    options->config.verbose = true;
    return 0;
}

static const struct option options_table[] = {
    {"engine", "auto|kvm|soft|metal", "what executes the guest (default auto: the first that works)",
     set_engine},
    {"cpus", "N", "virtual CPUs, 1 to 64 (default 1)", set_cpus},
    {"memory", "SIZE", "guest memory, with suffix K, M or G (default 512M)", set_memory},
    {"kernel", "FILE", "bzImage, ELF with a PVH note, or multiboot ELF", set_kernel},
    {"firmware", "bios|uefi[,vars=FILE]|FILE", "starts the machine when no kernel is given (default bios, with a disk or CD)",
     set_firmware},
    {"boot", "disk,cdrom,net", "what firmware tries, in this order (default disk,cdrom,net)", set_boot},
    {"initrd", "FILE", "initial RAM disk; for multiboot a module (repeatable)", set_initrd},
    {"append", "STRING", "the kernel's command line", set_append},
    {"disk", "FILE[,ro][,format=raw][,if=virtio|ahci]", "a disk, on virtio or SATA (repeatable)",
     set_disk},
    {"cdrom", "FILE", "a SATA CD-ROM drive with this ISO image in it (repeatable)", set_cdrom},
    {"net", "user[,forward=HOST:GUEST]|none",
     "user-mode NAT, with TCP (or udp:) ports forwarded (default user)", set_net},
    {"serial", "stdio|none|file:PATH|unix:PATH", "where the first serial port goes (default stdio)",
     set_serial},
    {"code-cache", "SIZE",
     "host memory for translated code, 4M to 1024M (soft engine; its default: see 'lodge doctor')",
     set_code_cache},
    {"cpu-model", "NAME", "what CPUID shows (default host; x86-64-v1 to -v4)", set_cpu_model},
    {"name", "NAME", "the machine's name, for messages", set_name},
    {"no-reboot", NULL, "end, with status 0, when the guest resets", set_no_reboot},
    {"debug-exit", NULL, "a guest write of V to port 0xf4 ends with status (V<<1)|1", set_debug_exit},
    {"dump-acpi", "DIR", "write the machine's ACPI tables to DIR and end", set_dump_acpi},
    {"stats", NULL, "print the engine's counters at the end", set_stats},
    {"verbose", NULL, "say more, also what the guest does oddly", set_verbose},
};

void run_options_help(void)
{
    for (unsigned i = 0; i < ARRAY_SIZE(options_table); i++) {
        const struct option *option = &options_table[i];
        char left[64];

        (void)snprintf(left, sizeof(left), "--%s%s%s", option->name, option->argument ? " " : "",
                       option->argument ? option->argument : "");
        if (strlen(left) <= 24)
            printf("  %-24s  %s\n", left, option->help);
        else
            printf("  %s\n  %-24s  %s\n", left, "", option->help);
    }
}

static int option_unknown(const char *word, struct error *err)
{
    const char *names[ARRAY_SIZE(options_table)];
    const char *nearest;

    for (unsigned i = 0; i < ARRAY_SIZE(options_table); i++)
        names[i] = options_table[i].name;
    nearest = cli_nearest(word + strspn(word, "-"), names, ARRAY_SIZE(names));
    if (nearest)
        return error_set(err, -EINVAL, "unknown option '%s' (did you mean --%s?)", word, nearest);
    return error_set(err, -EINVAL, "unknown option '%s' (see 'lodge help run')", word);
}

static const struct option *option_find(const char *word, size_t len)
{
    for (unsigned i = 0; i < ARRAY_SIZE(options_table); i++) {
        if (strlen(options_table[i].name) == len && memcmp(options_table[i].name, word, len) == 0)
            return &options_table[i];
    }
    return NULL;
}

/* "--name value", "--name=value" or "--flag"; advances *at past what was used. */
static int option_apply(struct run_options *options, int argc, char **argv, int *at,
                        struct error *err)
{
    const char *word = argv[*at], *value = NULL;
    const struct option *option;
    size_t len;

    if (strncmp(word, "--", 2) != 0 || !word[2])
        return error_set(err, -EINVAL, "unexpected word '%s' (options start with --; see 'lodge help run')",
                         word);
    len = strcspn(word + 2, "=");
    option = option_find(word + 2, len);
    if (!option)
        return option_unknown(word, err);
    if (word[2 + len] == '=')
        value = word + 2 + len + 1;
    ++*at;
    if (!option->argument)
        return value ? error_set(err, -EINVAL, "--%s takes no value", option->name)
                     : option->set(options, NULL, err);
    if (!value && *at < argc)
        value = argv[(*at)++];
    if (!value)
        return error_set(err, -EINVAL, "--%s needs a value: %s", option->name, option->argument);
    return option->set(options, value, err);
}

/* What starts the machine: a kernel, or firmware; without a word, firmware when there is something to boot. */
static int options_settle(struct run_options *options, struct error *err)
{
    struct vm_config *config = &options->config;

    if (options->dump_acpi)
        return 0;
    if (config->kernel && config->firmware.image)
        return error_set(err, -EINVAL,
                         "--kernel and --firmware exclude each other: a kernel is started directly");
    if (!config->kernel && (config->initrd_count || *config->append))
        return error_set(err, -EINVAL, "--initrd and --append need a --kernel");
    if (!config->kernel && !config->firmware.image &&
        (config->disk_count || config->cdrom_count))
        config->firmware.image = "bios";
    if (!config->kernel && !config->firmware.image)
        return error_set(err, -EINVAL,
                         "what to run? (give --kernel FILE, or --disk or --cdrom FILE to boot from; see 'lodge help run')");
    return 0;
}

int run_options_parse(struct run_options *options, int argc, char **argv, struct error *err)
{
    int ret = 0;

    *options = (struct run_options){
        .engine = "auto",
        .config = {.name = "guest",
                   .cpu_model = "host",
                   .cpus = 1,
                   .memory = MEMORY_DEFAULT,
                   .append = "",
                   .firmware = {.boot = {FIRMWARE_BOOT_DISK, FIRMWARE_BOOT_CDROM, FIRMWARE_BOOT_NET},
                                .boot_count = FIRMWARE_BOOTS_MAX},
                   .net = true,
                   .serial = VM_SERIAL_STDIO,
                   .abandon = cli_abandon},
    };
    for (int at = 1; ret == 0 && at < argc;)
        ret = option_apply(options, argc, argv, &at, err);
    return ret ? ret : options_settle(options, err);
}

void run_options_release(struct run_options *options)
{
    free(options->firmware_copy);
    options->firmware_copy = NULL;
    for (unsigned i = 0; i < options->storage_count; i++)
        free(options->storage[i]);
    options->storage_count = 0;
}
