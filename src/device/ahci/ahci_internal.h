/*
 * What the files of the AHCI adapter share. Not for others.
 *
 * Lock: everything is under the function's device lock, except the block requests while the back
 * end has them. Handlers never submit with the lock held: commands that need the back end are put
 * on their port's `ready` list, and ahci_submit() gives them over without it, since they may
 * complete on the same thread.
 */
#ifndef DEVICE_AHCI_AHCI_INTERNAL_H
#define DEVICE_AHCI_AHCI_INTERNAL_H

#include "device/ahci/ahci.h"

#define AHCI_SLOTS     32u
#define AHCI_SEGMENTS  256u /* of guest memory in one block request */
#define AHCI_PORT_BASE 0x100u
#define AHCI_PORT_SIZE 0x80u

/* Port registers (3.3), from the port's base. */
#define PX_CLB  0x00u
#define PX_CLBU 0x04u
#define PX_FB   0x08u
#define PX_FBU  0x0cu
#define PX_IS   0x10u
#define PX_IE   0x14u
#define PX_CMD  0x18u
#define PX_TFD  0x20u
#define PX_SIG  0x24u
#define PX_SSTS 0x28u
#define PX_SCTL 0x2cu
#define PX_SERR 0x30u
#define PX_SACT 0x34u
#define PX_CI   0x38u

#define PX_IS_DHRS 0x00000001u /* device to host register FIS */
#define PX_IS_PSS  0x00000002u /* PIO setup FIS */
#define PX_IS_SDBS 0x00000008u /* set device bits FIS */
#define PX_IS_DPS  0x00000020u /* a PRD with its interrupt bit was done */
#define PX_IS_PCS  0x00000040u /* mirrors SERR.DIAG.X */
#define PX_IS_PRCS 0x00400000u /* mirrors SERR.DIAG.N */
#define PX_IS_OFS  0x01000000u /* more bytes came than the PRDs have room for */
#define PX_IS_IFS  0x08000000u
#define PX_IS_HBFS 0x20000000u /* fatal: a host address is not memory */
#define PX_IS_TFES 0x40000000u /* the device set ERR */
#define PX_IE_MASK 0xfdc000ffu

#define PX_CMD_ST    0x00000001u
#define PX_CMD_SUD   0x00000002u
#define PX_CMD_POD   0x00000004u
#define PX_CMD_CLO   0x00000008u
#define PX_CMD_FRE   0x00000010u
#define PX_CMD_CCS   0x00001f00u
#define PX_CMD_FR    0x00004000u
#define PX_CMD_CR    0x00008000u
#define PX_CMD_HPCP  0x00040000u
#define PX_CMD_ATAPI 0x01000000u
#define PX_CMD_DLAE  0x02000000u

#define PX_SCTL_DET 0x0000000fu
#define PX_SERR_N   0x00010000u
#define PX_SERR_X   0x04000000u
#define PX_SSTS_UP  0x00000123u /* device there, 3 Gb/s, active */

/* Where a command is in its list of memory pieces (4.2.3.3). */
struct ahci_prdt {
    gpa_t table;
    uint32_t count, index, offset; /* offset: bytes used of entry `index` */
    bool interrupt;                /* an entry with the interrupt bit was used up */
};

struct ahci_port;

struct ahci_command {
    struct ahci_port *port;
    unsigned slot;
    gpa_t header; /* its command header, for the byte count */
    struct ata_task task;
    struct ahci_prdt prdt;
    uint32_t moved; /* bytes; the header's PRDBC */
    uint64_t left;  /* of the current block step, not yet given to the back end */
    uint64_t at;    /* byte of the image where that part starts */
    struct block_request io;
    struct iovec iov[AHCI_SEGMENTS];
    struct ahci_segment {
        gpa_t gpa;
        uint32_t index, offset; /* of the prdt cursor at its start */
    } segment[AHCI_SEGMENTS];
    struct ahci_command *next; /* ready list */
};

struct ahci_port {
    struct ahci *hba;
    unsigned index;
    /* Registers; ci and sact as the guest sees them. */
    uint64_t clb, fb;
    uint32_t is, ie, cmd, tfd, sig, ssts, sctl, serr, sact, ci;
    bool halted;         /* an error: no command runs until ST is cleared (5.3.8.1) */
    bool resetting;      /* COMRESET, until DET is 0 again and nothing is in flight */
    bool soft_reset;     /* SRST is set */
    bool signature_held; /* the first FIS waits for FRE */
    bool present;
    struct ata_device drive;
    /* Not saved: empty whenever the state is. */
    struct ahci_command *command; /* owned, AHCI_SLOTS; NULL without a drive */
    uint8_t *data;                /* owned, DRIVE_DATA_MIN; of the one command that is not queued */
    uint32_t active;              /* slots whose command is being executed */
    bool exclusive;               /* it is one that is not queued */
    bool draining;                /* nothing new starts, and what is in flight ends unseen */
    bool held;                    /* nothing new starts: somebody waits for the port to be idle */
    bool submitting;              /* a thread is in port_submit() */
    struct ahci_command *ready, **ready_end;
};

struct ahci {
    struct pci_function fn;
    struct mem *mem; /* borrowed */
    uint32_t ghc, is;
    bool resetting;      /* GHC.HR */
    bool level;          /* is an interrupt asserted */
    pthread_cond_t idle; /* a port has nothing in flight any more */
    struct ahci_port port[AHCI_PORTS];
};

/* ahci.c */
void ahci_interrupt_update(struct ahci *hba);
/* A port has nothing in flight: goes on with an adapter reset that waits for it. */
void ahci_port_idle(struct ahci *hba);

/* port.c */
uint32_t ahci_port_read(struct ahci_port *port, unsigned reg);
void ahci_port_write(struct ahci_port *port, unsigned reg, uint32_t value);
/* Registers to their values after power-on or GHC.HR, then the link comes up. Nothing is in flight.
 */
void ahci_port_reset(struct ahci_port *port, bool power);
void ahci_port_attach(struct ahci_port *port);
void ahci_port_detach(struct ahci_port *port);
/* What was stopped, goes on after the last command in flight. */
void ahci_port_settle(struct ahci_port *port);
void ahci_port_raise(struct ahci_port *port, uint32_t bits); /* PxIS */
extern const struct state_field ahci_port_state_fields[];

/* command.c */
nodiscard int ahci_commands_create(struct ahci_port *port);
void ahci_commands_destroy(struct ahci_port *port);
/* Starts what waits in PxCI and can run now. */
void ahci_port_run(struct ahci_port *port);
/* Gives what is ready to the back end, without the lock meanwhile. */
void ahci_submit(struct ahci *hba);
void ahci_port_wait_idle(struct ahci_port *port);

/* prdt.c: the guest's memory of a command. */
/* The next piece, at most `want` bytes: 1, 0 when there is no more, or -EFAULT. */
nodiscard int ahci_prdt_next(struct ahci *hba, struct ahci_prdt *prdt, uint64_t want, gpa_t *gpa,
                             uint32_t *len);
/* Fills in the request's vector with at most `want` bytes, whole sectors: how many, or -EFAULT. */
nodiscard int64_t ahci_command_gather(struct ahci_command *cmd, uint64_t want, bool to_guest);
void ahci_command_mark_written(struct ahci_command *cmd);
/* Copies up to len bytes of the drive's; how many, or -EFAULT. */
nodiscard int64_t ahci_command_copy(struct ahci_command *cmd, uint8_t *buf, uint32_t len,
                                    bool to_guest);

/* fis.c: received FISes (4.2.1). Each sets the port's task file and stores the FIS if FRE allows.
 */
void ahci_fis_register(struct ahci_port *port, const struct ata_taskfile *tf, bool interrupt);
void ahci_fis_pio_setup(struct ahci_port *port, const struct ata_taskfile *tf, uint32_t bytes,
                        bool to_host, bool interrupt);
void ahci_fis_dma_setup(struct ahci_port *port, unsigned tag, uint32_t bytes, bool to_host);
void ahci_fis_device_bits(struct ahci_port *port, const struct ata_taskfile *tf, uint32_t done);
/* Host to device: false when it is no register FIS. */
bool ahci_fis_parse(const uint8_t *fis, struct ata_taskfile *tf, bool *command, uint8_t *control);

#endif
