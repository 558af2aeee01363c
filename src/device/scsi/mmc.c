#include "device/scsi/mmc.h"

#include <string.h>

#define TRACK_DATA     0x14u /* ADR 1, control 4: a data track, recorded without interruption */
#define LEAD_OUT       0xaau
#define CD_SECTORS_MAX 450000u /* what fits on a 99-minute CD; larger is a DVD */

#define PROFILE_NONE    0x0000u
#define PROFILE_CD_ROM  0x0008u
#define PROFILE_DVD_ROM 0x0010u

/* Speeds are in units of 1000 bytes a second (MMC-6, table 341): 24 times that of an audio CD. */
#define SPEED 4234u

static void text_put(uint8_t *at, size_t len, const char *text)
{
    size_t used = strnlen(text, len);

    memset(at, ' ', len);
    memcpy(at, text, used);
}

/* Vital product data (SPC-4, 7.8). */
static uint32_t inquiry_page(const struct scsi_cd *cd, uint8_t page, uint8_t *out)
{
    size_t serial = strnlen(cd->serial, 20);

    out[0] = 0x05;
    out[1] = page;
    switch (page) {
    case 0x00: /* supported pages */
        out[3] = 3;
        out[5] = 0x80;
        out[6] = 0x83;
        return 7;
    case 0x80: /* unit serial number */
        out[3] = (uint8_t)serial;
        memcpy(&out[4], cd->serial, serial);
        return 4 + (uint32_t)serial;
    case 0x83: /* device identification: vendor's own text */
        out[3] = (uint8_t)(4 + 8 + serial);
        out[4] = 0x02; /* ASCII */
        out[5] = 0x01; /* T10 vendor identification */
        out[7] = (uint8_t)(8 + serial);
        text_put(&out[8], 8, "LODGE");
        memcpy(&out[16], cd->serial, serial);
        return 16 + (uint32_t)serial;
    default: return 0;
    }
}

uint32_t mmc_inquiry(const struct scsi_cd *cd, const uint8_t *cdb, uint8_t *out)
{
    if (cdb[1] & 1)
        return inquiry_page(cd, cdb[2], out);
    if (cdb[2])
        return 0;
    out[0] = 0x05; /* CD/DVD device */
    out[1] = 0x80; /* removable medium */
    out[2] = 0x05; /* SPC-3 */
    out[3] = 0x02;
    out[4] = 36 - 5;
    text_put(&out[8], 8, "LODGE");
    text_put(&out[16], 16, "CD-ROM");
    text_put(&out[32], 4, "1.0");
    return 36;
}

/* Minute, second, frame: 75 frames a second, sector 0 at two seconds (MMC-6, 4.2.2.4). */
static void address_put(uint8_t *at, uint32_t lba, bool msf)
{
    uint32_t frame = lba + 150;

    if (!msf) {
        scsi_put(at, 4, lba);
        return;
    }
    at[0] = 0;
    at[1] = (uint8_t)(frame / (75 * 60));
    at[2] = (uint8_t)(frame / 75 % 60);
    at[3] = (uint8_t)(frame % 75);
}

static uint8_t *toc_track(uint8_t *at, uint8_t track, uint32_t lba, bool msf)
{
    at[1] = TRACK_DATA;
    at[2] = track;
    address_put(&at[4], lba, msf);
    return at + 8;
}

/* Formats 0 (tracks) and 1 (sessions): MMC-6, 6.25. The old place of the format is the control
 * byte. */
uint32_t mmc_read_toc(const struct scsi_cd *cd, const uint8_t *cdb, uint8_t *out)
{
    uint8_t format = cdb[2] & 0x0f ? cdb[2] & 0x0f : cdb[9] >> 6;
    uint8_t start = cdb[6], *at = out + 4;
    bool msf = cdb[1] & 2;

    if (format > 1 || (format == 0 && start > 1 && start != LEAD_OUT))
        return 0;
    out[2] = out[3] = 1; /* first and last track, or session */
    if (format == 1 || start <= 1)
        at = toc_track(at, 1, 0, msf);
    if (format == 0)
        at = toc_track(at, LEAD_OUT, scsi_cd_sectors(cd), msf);
    scsi_put(out, 2, (uint32_t)(at - out) - 2);
    return (uint32_t)(at - out);
}

static uint32_t cd_profile(const struct scsi_cd *cd)
{
    if (!scsi_cd_loaded(cd))
        return PROFILE_NONE;
    return scsi_cd_sectors(cd) > CD_SECTORS_MAX ? PROFILE_DVD_ROM : PROFILE_CD_ROM;
}

/* Feature descriptors (MMC-6, 5.3). `when`: the profile for which it is current, or any of these.
 */
#define WHEN_ALWAYS 0xffffffffu
#define WHEN_LOADED 0xfffffffeu
struct mmc_feature {
    uint16_t code;
    uint8_t version, len;
    bool persistent;
    uint32_t when;
    uint8_t body[12];
};

static const struct mmc_feature mmc_features[] = {
    {0x0000, 0, 8, true, WHEN_ALWAYS, {0x00, PROFILE_DVD_ROM, 0, 0, 0x00, PROFILE_CD_ROM, 0, 0}},
    {0x0001, 2, 8, true, WHEN_ALWAYS, {0, 0, 0, 2 /* ATAPI */, 1}},
    {0x0003, 0, 4, true, WHEN_ALWAYS, {0x29 /* tray, eject, lock */}},
    {0x0010, 0, 8, false, WHEN_LOADED, {0, 0, 0x08, 0 /* 2048 */, 0, 1, 0}},
    {0x001e, 2, 4, false, PROFILE_CD_ROM, {0}},
    {0x001f, 0, 4, false, PROFILE_DVD_ROM, {0}},
};

static bool feature_current(const struct mmc_feature *feature, uint32_t profile)
{
    if (feature->when == WHEN_LOADED)
        return profile != PROFILE_NONE;
    return feature->when == WHEN_ALWAYS || feature->when == profile;
}

static uint8_t *feature_put(uint8_t *at, const struct mmc_feature *feature, uint32_t profile)
{
    bool current = feature_current(feature, profile);

    scsi_put(at, 2, feature->code);
    at[2] = (uint8_t)(feature->version << 2 | (feature->persistent ? 2 : 0) | (current ? 1 : 0));
    at[3] = feature->len;
    memcpy(&at[4], feature->body, feature->len);
    if (feature->code == 0) { /* each profile of the list says whether it is the current one */
        at[6] = profile == PROFILE_DVD_ROM;
        at[10] = profile == PROFILE_CD_ROM;
    }
    return at + 4 + feature->len;
}

uint32_t mmc_get_configuration(const struct scsi_cd *cd, const uint8_t *cdb, uint8_t *out)
{
    uint32_t from = scsi_get(&cdb[2], 2), profile = cd_profile(cd);
    uint8_t which = cdb[1] & 3, *at = out + 8;

    if (which == 3)
        return 0;
    for (size_t i = 0; i < ARRAY_SIZE(mmc_features); i++) {
        const struct mmc_feature *feature = &mmc_features[i];

        if (which == 2 ? feature->code != from : feature->code < from)
            continue;
        if (which == 1 && !feature_current(feature, profile))
            continue;
        at = feature_put(at, feature, profile);
    }
    scsi_put(out, 4, (uint32_t)(at - out) - 4);
    scsi_put(&out[6], 2, profile);
    return (uint32_t)(at - out);
}

/* A finished disc of one complete session with one track (MMC-6, 6.21). */
uint32_t mmc_disc_information(const struct scsi_cd *cd, const uint8_t *cdb, uint8_t *out)
{
    (void)cd;
    if (cdb[1] & 7)
        return 0;
    scsi_put(out, 2, 32);
    out[2] = 0x0e; /* last session complete, disc finalised, not erasable */
    out[3] = out[4] = out[5] = out[6] = 1;
    out[7] = 0x20;             /* unrestricted use */
    memset(&out[16], 0xff, 8); /* no lead-in of a next session, no last possible lead-out */
    return 34;
}

/* The only track by its number, by an address on it, or by its session (MMC-6, 6.26). */
uint32_t mmc_track_information(const struct scsi_cd *cd, const uint8_t *cdb, uint8_t *out)
{
    uint32_t sectors = scsi_cd_sectors(cd), address = scsi_get(&cdb[2], 4);
    uint8_t by = cdb[1] & 3;

    if (by == 3 || (by == 0 && address >= sectors) || (by != 0 && address != 1))
        return 0;
    scsi_put(out, 2, 34);
    out[2] = out[3] = 1; /* track, session */
    out[5] = 0x04;       /* data, uninterrupted */
    out[6] = 0x01;       /* mode 1 */
    scsi_put(&out[24], 4, sectors);
    return 36;
}

/* Mode pages (SPC-4, 7.5; MMC-6, 7). Nothing is changeable. */
static uint8_t *page_put(uint8_t *at, uint8_t code, uint8_t len)
{
    at[0] = code;
    at[1] = len;
    return at + 2 + len;
}

static uint8_t *page_capabilities(const struct scsi_cd *cd, uint8_t *at)
{
    at[2] = 0x0b;                                      /* reads CD-R, CD-RW, DVD-ROM */
    at[4] = 0x70;                                      /* mode 2 forms 1 and 2, multisession */
    at[6] = (uint8_t)(0x29 | (cd->locked ? 0x02 : 0)); /* tray, eject, lock; its state */
    scsi_put(&at[8], 2, SPEED);
    scsi_put(&at[12], 2, 512); /* KiB of buffer */
    scsi_put(&at[14], 2, SPEED);
    return page_put(at, 0x2a, 0x14);
}

uint32_t mmc_mode_sense(const struct scsi_cd *cd, const uint8_t *cdb, uint8_t *out)
{
    uint8_t page = cdb[2] & 0x3f, *at = out + 8;
    bool changeable = cdb[2] >> 6 == 1, all = page == 0x3f;

    if (all || page == 0x01)
        at = page_put(at, 0x01, 0x0a); /* read error recovery */
    if (all || page == 0x1a)
        at = page_put(at, 0x1a, 0x0a); /* power condition */
    if (all || page == 0x1d)
        at = page_put(at, 0x1d, 0x08); /* time-out and protect */
    if ((all || page == 0x2a) && changeable)
        at = page_put(at, 0x2a, 0x14);
    else if (all || page == 0x2a)
        at = page_capabilities(cd, at);
    if (at == out + 8)
        return 0;
    scsi_put(out, 2, (uint32_t)(at - out) - 2);
    return (uint32_t)(at - out);
}

uint32_t mmc_mechanism_status(const struct scsi_cd *cd, const uint8_t *cdb, uint8_t *out)
{
    (void)cdb;
    out[1] = cd->tray_open ? 0x10 : 0;
    return 8; /* no changer, so no slot table */
}
