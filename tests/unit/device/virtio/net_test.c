#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "../virtio_driver.h"
#include "device/virtio/checksum.h"
#include "device/virtio/virtio.h"

#define RX 0u
#define TX 1u
#define F_MRG (1ull << 15)
#define BUFFERS DRIVER_DATA
#define FRAME  (DRIVER_DATA + 0x100000)

/* A back end that keeps what was sent. */
struct fake_net {
    struct net net;
    struct net_peer peer;
    uint8_t sent[70000];
    size_t sent_len;
    unsigned sends, rooms;
};

struct fixture {
    struct driver_machine dm;
    struct driver d;
    struct fake_net fake;
};

static struct fixture f;

static void fake_send(struct net *net, const struct iovec *iov, unsigned count)
{
    struct fake_net *fake = container_of(net, struct fake_net, net);

    fake->sends++;
    fake->sent_len = 0;
    for (unsigned i = 0; i < count; i++) {
        memcpy(fake->sent + fake->sent_len, iov[i].iov_base, iov[i].iov_len);
        fake->sent_len += iov[i].iov_len;
    }
}

static void fake_room(struct net *net)
{
    container_of(net, struct fake_net, net)->rooms++;
}

static void fake_start(struct net *net, const struct net_peer *peer)
{
    container_of(net, struct fake_net, net)->peer = *peer;
}

static void fake_close(struct net *net)
{
    (void)net;
}

static const struct net_ops fake_ops = {
    .send = fake_send, .room = fake_room, .start = fake_start, .close = fake_close};

static int setup_features(uint64_t features)
{
    static const uint8_t mac[6] = {0x52, 0x54, 0, 1, 2, 3};

    f = (struct fixture){.fake.net.ops = &fake_ops};
    driver_machine_init(&f.dm);
    assert_int_equal(virtio_net_create(f.dm.host, &f.fake.net, mac, "net0"), 0);
    driver_init(&f.d, &f.dm, 1, features, true);
    driver_queue_setup(&f.d, RX, true);
    driver_queue_setup(&f.d, TX, true);
    driver_ok(&f.d);
    assert_int_equal(driver_status(&f.d), 0xf);
    f.fake.rooms = 0; /* a new driver is told of once */
    return 0;
}

static int setup(void **state)
{
    (void)state;
    return setup_features(F_VERSION_1 | F_MRG | F_EVENT_IDX | 1);
}

static int setup_plain(void **state)
{
    (void)state;
    return setup_features(F_VERSION_1);
}

static int teardown(void **state)
{
    (void)state;
    driver_machine_release(&f.dm);
    return 0;
}

static bool receive(size_t len)
{
    static uint8_t frame[70000];
    struct iovec iov = {.iov_base = frame, .iov_len = len};

    for (size_t i = 0; i < len; i++)
        frame[i] = (uint8_t)(i * 13 + len);
    return f.fake.peer.receive(f.fake.peer.opaque, &iov, 1);
}

static void offer_rx(unsigned count, uint32_t len)
{
    for (unsigned i = 0; i < count; i++) {
        uint16_t at = (uint16_t)(f.d.avail_idx[RX] % DRIVER_QUEUE);

        driver_desc(&f.d, RX, at, BUFFERS + at * 4096u, len, D_WRITE, 0);
        driver_offer(&f.d, RX, at);
    }
    driver_kick(&f.d, RX);
}

static uint8_t byte_at(uint64_t gpa)
{
    return (uint8_t)mem_read16(f.dm.machine->mem, gpa);
}

/* The frame that receive(len) sent, over `buffers` merged buffers of `size` bytes. */
static void check_frame(size_t len, unsigned buffers, uint32_t size)
{
    size_t at = 0;
    uint32_t id, got;

    for (unsigned i = 0; i < buffers; i++) {
        uint64_t base;
        uint32_t skip = i ? 0 : 12;

        assert_true(driver_wait(&f.d, RX, &id, &got));
        base = BUFFERS + id * 4096u;
        if (i == 0)
            assert_int_equal(mem_read16(f.dm.machine->mem, base + 10), buffers);
        assert_int_equal(got, len + 12 - (at + (i ? 12 : 0)) < size ? len + 12 - (at + (i ? 12 : 0))
                                                                     : size);
        for (uint32_t b = skip; b < got; b++, at++)
            assert_int_equal(byte_at(base + b), (uint8_t)(at * 13 + len));
    }
    assert_int_equal(at, len);
}

static void test_config(void **state)
{
    (void)state;
    assert_int_equal(driver_read(&f.d, 0x2000, 4), 0x01005452);
    assert_int_equal(driver_read(&f.d, 0x2006, 2), 1);
    assert_true(driver_read(&f.d, 0x200a, 2) >= 1500);
}

static void test_receive_one_buffer(void **state)
{
    (void)state;
    offer_rx(2, 2048);
    assert_true(receive(60));
    check_frame(60, 1, 2048);
    assert_true(receive(1514));
    check_frame(1514, 1, 2048);
}

static void test_receive_merged(void **state)
{
    (void)state;
    offer_rx(8, 1024);
    assert_true(receive(5000));
    check_frame(5000, 5, 1024);
    assert_int_equal(f.dm.msi_count[1], 1);
}

static void test_receive_waits_for_room(void **state)
{
    (void)state;
    assert_false(receive(60));
    offer_rx(2, 1024);
    assert_int_equal(f.fake.rooms, 1);
    assert_false(receive(3000)); /* two are not enough; both stay */
    /* A doorbell is asked for beyond the two. */
    assert_int_equal(mem_read16(f.dm.machine->mem, f.d.used[RX] + 4 + 8 * DRIVER_QUEUE), 2);
    offer_rx(1, 1024);
    assert_int_equal(f.fake.rooms, 2);
    assert_true(receive(3000));
    check_frame(3000, 3, 1024);
}

/* What the back end kept over a driver's reset is asked for again. */
static void test_room_after_reset(void **state)
{
    unsigned rooms;

    (void)state;
    assert_false(receive(60));
    driver_write(&f.d, 0x14, 1, 0);
    rooms = f.fake.rooms;
    driver_init(&f.d, &f.dm, 1, F_VERSION_1 | F_MRG | F_EVENT_IDX, true);
    mem_write16(f.dm.machine->mem, DRIVER_RINGS + 0x4002, 0);
    driver_queue_setup(&f.d, RX, true);
    driver_ok(&f.d);
    offer_rx(1, 1024);
    assert_true(f.fake.rooms > rooms);
}

static void test_receive_too_large_is_dropped(void **state)
{
    (void)state;
    offer_rx(2, 1024);
    assert_true(receive(3000));
    assert_true(receive(100));
    check_frame(100, 1, 1024);
}

static void send_frame(uint32_t len, uint8_t flags, uint16_t start, uint16_t offset)
{
    struct mem *mem = f.dm.machine->mem;
    uint8_t hdr[12] = {flags, 0, 0, 0, 0, 0, (uint8_t)start, (uint8_t)(start >> 8),
                       (uint8_t)offset, (uint8_t)(offset >> 8)};

    assert_int_equal(mem_write(mem, FRAME, hdr, sizeof(hdr)), 0);
    for (unsigned i = 0; i < len; i++)
        assert_int_equal(mem_fill(mem, FRAME + 12 + i, (uint8_t)(i * 3), 1), 0);
    driver_desc(&f.d, TX, 0, FRAME, 12, D_NEXT, 1);
    driver_desc(&f.d, TX, 1, FRAME + 12, len, 0, 0);
    driver_offer(&f.d, TX, 0);
    driver_kick(&f.d, TX);
    assert_true(driver_wait(&f.d, TX, NULL, NULL));
}

static void test_transmit(void **state)
{
    (void)state;
    send_frame(1514, 0, 0, 0);
    assert_int_equal(f.fake.sent_len, 1514);
    for (unsigned i = 0; i < 1514; i++)
        assert_int_equal(f.fake.sent[i], (uint8_t)(i * 3));
    for (unsigned i = 0; i < 100; i++)
        send_frame(100 + i, 0, 0, 0);
    assert_int_equal(f.fake.sends, 101);
}

static void test_transmit_checksum(void **state)
{
    (void)state;
    send_frame(101, 1, 34, 16);
    assert_int_equal(f.fake.sent_len, 101);
    /* With the checksum in, the sum over the range is what the field held before, twice turned. */
    {
        uint8_t copy[101];
        uint16_t sum;

        for (unsigned i = 0; i < 101; i++)
            copy[i] = (uint8_t)(i * 3);
        sum = (uint16_t)~checksum_ones(copy + 34, 67);
        assert_memory_equal(f.fake.sent + 50, &sum, 2);
    }
    /* Outside the frame: dropped, and the card lives. */
    send_frame(60, 1, 59, 0);
    send_frame(60, 1, 0xffff, 0xffff);
    assert_int_equal(f.fake.sends, 1);
    send_frame(60, 0, 0, 0);
    assert_int_equal(f.fake.sends, 2);
}

static void test_transmit_odd_frames(void **state)
{
    struct mem *mem = f.dm.machine->mem;

    (void)state;
    driver_desc(&f.d, TX, 0, FRAME, 5, 0, 0); /* less than a header */
    driver_offer(&f.d, TX, 0);
    driver_desc(&f.d, TX, 1, FRAME, 0x80000, 0, 0); /* longer than any frame */
    driver_offer(&f.d, TX, 1);
    driver_desc(&f.d, TX, 2, FRAME, 0, 0, 0);
    driver_offer(&f.d, TX, 2);
    driver_kick(&f.d, TX);
    for (unsigned i = 0; i < 3; i++)
        assert_true(driver_wait(&f.d, TX, NULL, NULL));
    assert_int_equal(f.fake.sends, 0);
    assert_int_equal(mem_read16(mem, f.d.used[TX] + 2), 3);
    assert_int_equal(driver_status(&f.d), 0xf);
}

static void test_checksum_against_words(void **state)
{
    uint8_t bytes[257];

    (void)state;
    for (unsigned len = 0; len <= sizeof(bytes); len++) {
        uint32_t sum = 0;

        for (unsigned i = 0; i < len; i++) {
            bytes[i] = (uint8_t)rand();
            sum += (uint32_t)bytes[i] << (8 * (i & 1));
        }
        while (sum >> 16)
            sum = (sum & 0xffff) + (sum >> 16);
        assert_int_equal(checksum_ones(bytes, len), sum);
    }
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_config),
        TEST(test_receive_one_buffer),
        TEST(test_receive_merged),
        TEST(test_receive_waits_for_room),
        TEST(test_room_after_reset),
        cmocka_unit_test_setup_teardown(test_receive_too_large_is_dropped, setup_plain, teardown),
        TEST(test_transmit),
        TEST(test_transmit_checksum),
        TEST(test_transmit_odd_frames),
        cmocka_unit_test(test_checksum_against_words),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
