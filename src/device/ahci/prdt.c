/* Physical region descriptors (4.2.3.3): where in guest memory a command's data are. */
#include <errno.h>
#include <string.h>

#include "device/ahci/ahci_internal.h"

#define PRD_BYTES      16u
#define PRD_COUNT_MASK 0x003fffffu
#define PRD_INTERRUPT  0x80000000u

struct prd {
    uint64_t addr;
    uint32_t reserved, count; /* one less than the bytes, which are even */
};

int ahci_prdt_next(struct ahci *hba, struct ahci_prdt *prdt, uint64_t want, gpa_t *gpa,
                   uint32_t *len)
{
    struct prd prd;
    uint32_t bytes;

    if (prdt->index >= prdt->count)
        return 0;
    if (mem_read(hba->mem, prdt->table + (uint64_t)prdt->index * PRD_BYTES, &prd, sizeof(prd)))
        return -EFAULT;
    bytes = ((prd.count & PRD_COUNT_MASK) | 1) + 1;
    if (prdt->offset >= bytes)
        return -EFAULT; /* the guest made it shorter meanwhile */
    *gpa = (prd.addr & ~1ull) + prdt->offset;
    *len = bytes - prdt->offset < want ? bytes - prdt->offset : (uint32_t)want;
    prdt->offset += *len;
    if (prdt->offset == bytes) {
        prdt->index++;
        prdt->offset = 0;
        prdt->interrupt |= (prd.count & PRD_INTERRUPT) != 0;
    }
    return 1;
}

/* Gives back what is not a whole sector: the next request starts with it. */
static uint64_t gather_trim(struct ahci_command *cmd, uint64_t total)
{
    uint64_t excess = total % BLOCK_SECTOR;

    total -= excess;
    while (excess) {
        unsigned last = cmd->io.iov_count - 1;
        uint64_t len = cmd->iov[last].iov_len, cut = excess < len ? excess : len;

        cmd->iov[last].iov_len -= cut;
        cmd->prdt.index = cmd->segment[last].index;
        cmd->prdt.offset = cmd->segment[last].offset + (uint32_t)cmd->iov[last].iov_len;
        if (cmd->iov[last].iov_len == 0)
            cmd->io.iov_count--;
        excess -= cut;
    }
    return total;
}

int64_t ahci_command_gather(struct ahci_command *cmd, uint64_t want, bool to_guest)
{
    struct ahci *hba = cmd->port->hba;
    uint64_t total = 0;

    cmd->io.iov_count = 0;
    while (total < want && cmd->io.iov_count < AHCI_SEGMENTS) {
        struct ahci_segment *segment = &cmd->segment[cmd->io.iov_count];
        uint32_t len;
        void *host;
        int ret;

        segment->index = cmd->prdt.index;
        segment->offset = cmd->prdt.offset;
        ret = ahci_prdt_next(hba, &cmd->prdt, want - total, &segment->gpa, &len);
        if (ret < 0)
            return ret;
        if (ret == 0)
            break;
        host = mem_pin(hba->mem, segment->gpa, len, to_guest);
        if (!host)
            return -EFAULT;
        cmd->iov[cmd->io.iov_count++] = (struct iovec){.iov_base = host, .iov_len = len};
        total += len;
    }
    return (int64_t)gather_trim(cmd, total);
}

void ahci_command_mark_written(struct ahci_command *cmd)
{
    for (unsigned i = 0; i < cmd->io.iov_count; i++)
        mem_mark_written(cmd->port->hba->mem, cmd->segment[i].gpa, cmd->iov[i].iov_len);
}

int64_t ahci_command_copy(struct ahci_command *cmd, uint8_t *buf, uint32_t len, bool to_guest)
{
    struct ahci *hba = cmd->port->hba;
    uint32_t done = 0, part;
    gpa_t gpa;

    while (done < len) {
        int ret = ahci_prdt_next(hba, &cmd->prdt, len - done, &gpa, &part);

        if (ret == 0)
            break;
        if (ret > 0)
            ret = to_guest ? mem_write(hba->mem, gpa, buf + done, part)
                           : mem_read(hba->mem, gpa, buf + done, part);
        if (ret < 0)
            return ret;
        done += part;
    }
    return done;
}
