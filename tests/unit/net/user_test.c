/* The user network as a guest's card sees it: ARP, DHCP, and UDP to a server of the host. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <arpa/inet.h>
#include <pthread.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "device/virtio/checksum.h"
#include "net/net.h"
#include "net/user_watch.h"

struct card {
    struct net *net;
    pthread_mutex_t lock;
    pthread_cond_t arrived;
    uint8_t frame[64][2048];
    size_t len[64];
    unsigned head, count; /* frames not looked at */
    bool full;            /* refuse everything */
    unsigned refused;
};

static bool card_receive(void *opaque, const struct iovec *iov, unsigned count)
{
    struct card *card = opaque;
    bool taken = false;

    pthread_mutex_lock(&card->lock);
    assert_int_equal(count, 1);
    if (card->full) {
        card->refused++;
    } else {
        taken = true;
        if (card->count < 64 && iov->iov_len <= 2048) {
            unsigned at = (card->head + card->count++) % 64;

            memcpy(card->frame[at], iov->iov_base, iov->iov_len);
            card->len[at] = iov->iov_len;
        }
    }
    pthread_cond_signal(&card->arrived);
    pthread_mutex_unlock(&card->lock);
    return taken;
}

/* The next frame, or false after ten seconds. */
static bool card_wait(struct card *card, uint8_t *frame, size_t *len)
{
    struct timespec end;
    bool got;

    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += 10;
    pthread_mutex_lock(&card->lock);
    while (!card->count && pthread_cond_timedwait(&card->arrived, &card->lock, &end) == 0)
        ;
    got = card->count > 0;
    if (got) {
        memcpy(frame, card->frame[card->head], card->len[card->head]);
        *len = card->len[card->head];
        card->head = (card->head + 1) % 64;
        card->count--;
    }
    pthread_mutex_unlock(&card->lock);
    return got;
}

static void card_init(struct card *card)
{
    struct net_user_options options = {0};
    struct error err = {0};

    *card = (struct card){.lock = PTHREAD_MUTEX_INITIALIZER, .arrived = PTHREAD_COND_INITIALIZER};
    assert_int_equal(net_user_create(&options, &card->net, &err), 0);
    card->net->ops->start(card->net,
                          &(struct net_peer){.receive = card_receive, .opaque = card});
}

static void card_send(struct card *card, const uint8_t *frame, size_t len)
{
    struct iovec iov[2] = {{(void *)frame, 14}, {(void *)(frame + 14), len - 14}};

    card->net->ops->send(card->net, iov, 2);
}

static void put16(uint8_t *at, unsigned value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

/* Ethernet, IPv4 and UDP headers around `payload` bytes at frame + 42. Returns the frame's length. */
static size_t udp_frame(uint8_t *frame, uint32_t from, uint32_t to, unsigned sport, unsigned dport,
                        size_t payload)
{
    static const uint8_t ether[14] = {0x52, 0x55, 10, 0, 2, 2, 0x52, 0x54, 0, 1, 2, 3, 8, 0};
    uint16_t sum;

    memcpy(frame, ether, 14);
    memset(frame + 14, 0, 28);
    frame[14] = 0x45;
    put16(frame + 16, (unsigned)(28 + payload));
    frame[22] = 64;
    frame[23] = 17;
    put16(frame + 26, from >> 16);
    put16(frame + 28, from & 0xffff);
    put16(frame + 30, to >> 16);
    put16(frame + 32, to & 0xffff);
    sum = (uint16_t)~checksum_ones(frame + 14, 20);
    memcpy(frame + 24, &sum, 2);
    put16(frame + 34, sport);
    put16(frame + 36, dport);
    put16(frame + 38, (unsigned)(8 + payload));
    return 42 + payload;
}

static void test_dhcp_offers_the_documented_address(void **state)
{
    static uint8_t frame[2048];
    struct card card;
    bool offered = false;
    size_t len;

    (void)state;
    card_init(&card);
    memset(frame, 0, sizeof(frame));
    frame[42] = 1; /* BOOTREQUEST, Ethernet */
    frame[43] = 1;
    frame[44] = 6;
    memcpy(frame + 42 + 28, "\x52\x54\0\1\2\3", 6);
    memcpy(frame + 42 + 236, "\x63\x82\x53\x63\x35\x01\x01\xff", 8); /* DISCOVER */
    len = udp_frame(frame, 0, 0xffffffff, 68, 67, 300);
    memset(frame, 0xff, 6);
    card_send(&card, frame, len);
    while (!offered) {
        assert_true(card_wait(&card, frame, &len));
        offered = len > 42 + 240 && frame[36] == 0 && frame[37] == 68 &&
                  memcmp(frame + 42 + 16, "\x0a\x00\x02\x0f", 4) == 0;
    }
    card.net->ops->close(card.net);
}

static int udp_server(struct sockaddr_in *addr)
{
    socklen_t len = sizeof(*addr);
    int fd = socket(AF_INET, SOCK_DGRAM, 0);

    *addr = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    assert_int_equal(bind(fd, (struct sockaddr *)addr, sizeof(*addr)), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)addr, &len), 0);
    return fd;
}

/* Answers the gateway's ARP question for 10.0.2.15. */
static void answer_arp(struct card *card, const uint8_t *question)
{
    uint8_t answer[42];

    memcpy(answer, question + 6, 6);
    memcpy(answer + 6, "\x52\x54\0\1\2\3", 6);
    memcpy(answer + 12, "\x08\x06\0\1\x08\0\6\4\0\2\x52\x54\0\1\2\3\x0a\0\2\x0f", 20);
    memcpy(answer + 32, question + 22, 10);
    card_send(card, answer, sizeof(answer));
}

/* Until a UDP frame to guest port `port` comes. */
static bool wait_udp(struct card *card, unsigned port, uint8_t *frame, size_t *len)
{
    for (unsigned i = 0; i < 32 && card_wait(card, frame, len); i++) {
        if (frame[12] == 8 && frame[13] == 6 && frame[21] == 1)
            answer_arp(card, frame);
        else if (frame[12] == 8 && frame[13] == 0 && frame[23] == 17 &&
                 (unsigned)(frame[36] << 8 | frame[37]) == port)
            return true;
    }
    return false;
}

static void test_udp_to_the_host_and_back(void **state)
{
    static uint8_t frame[2048];
    struct sockaddr_in addr, from;
    socklen_t from_len = sizeof(from);
    struct card card;
    char text[64];
    size_t len;
    int fd = udp_server(&addr);

    (void)state;
    card_init(&card);
    memcpy(frame + 42, "from the guest", 14);
    len = udp_frame(frame, 0x0a00020f, 0x0a000202, 5000, ntohs(addr.sin_port), 14);
    card_send(&card, frame, len);
    assert_int_equal(recvfrom(fd, text, sizeof(text), 0, (struct sockaddr *)&from, &from_len), 14);
    assert_memory_equal(text, "from the guest", 14);
    sendto(fd, "from the host", 13, 0, (struct sockaddr *)&from, from_len);
    assert_true(wait_udp(&card, 5000, frame, &len));
    assert_memory_equal(frame + 42, "from the host", 13);

    /* A card without room gets its frames when it has some. */
    pthread_mutex_lock(&card.lock);
    card.full = true;
    pthread_mutex_unlock(&card.lock);
    sendto(fd, "later", 5, 0, (struct sockaddr *)&from, from_len);
    for (unsigned i = 0; i < 1000 && !card.refused; i++)
        usleep(10000);
    pthread_mutex_lock(&card.lock);
    assert_int_not_equal(card.refused, 0);
    card.full = false;
    pthread_mutex_unlock(&card.lock);
    card.net->ops->room(card.net);
    assert_true(wait_udp(&card, 5000, frame, &len));
    assert_memory_equal(frame + 42, "later", 5);
    card.net->ops->close(card.net);
    close(fd);
}

static void test_odd_frames_do_no_harm(void **state)
{
    static uint8_t frame[70000];
    struct card card;

    (void)state;
    card_init(&card);
    for (size_t len = 14; len < 80; len++) {
        for (size_t i = 0; i < len; i++)
            frame[i] = (uint8_t)(i * len);
        put16(frame + 12, len & 1 ? 0x0800 : 0x86dd);
        card_send(&card, frame, len);
    }
    card_send(&card, frame, sizeof(frame)); /* longer than any: dropped */
    card.net->ops->close(card.net);
}

static void test_forward_refused_by_name(void **state)
{
    struct net_user_options options = {.forward_count = 1};
    struct sockaddr_in addr;
    struct error err = {0};
    struct net *net;
    int fd = udp_server(&addr);

    (void)state;
    options.forward[0] = (struct net_forward){
        .udp = true, .host_port = ntohs(addr.sin_port), .guest_port = 53};
    assert_true(net_user_create(&options, &net, &err) < 0);
    assert_non_null(strstr(err.message, "UDP port"));
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dhcp_offers_the_documented_address),
        cmocka_unit_test(test_udp_to_the_host_and_back),
        cmocka_unit_test(test_odd_frames_do_no_harm),
        cmocka_unit_test(test_forward_refused_by_name),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
