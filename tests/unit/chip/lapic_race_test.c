/* Interrupts sent by several threads to one APIC while its vCPU accepts them: none may be lost. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/clock.h"
#include "chip/lapic.h"

#define SENDERS 2u
#define VECTORS 100u /* of each sender */
#define ROUNDS  50000u

struct sender {
    struct lapic_group *group;
    unsigned first;
    _Atomic bool waiting[VECTORS]; /* sent, not yet accepted */
    uint64_t give_up;
};

static void *send_all(void *opaque)
{
    struct sender *s = opaque;

    for (unsigned i = 0; i < ROUNDS; i++) {
        unsigned v = i * 37 % VECTORS;

        while (atomic_load(&s->waiting[v])) {
            if (clock_now() > s->give_up)
                return NULL;
            sched_yield();
        }
        atomic_store(&s->waiting[v], true);
        lapic_group_msi(s->group, 0xfee00000, s->first + v);
    }
    return NULL;
}

static unsigned accept_all(void *apic, struct sender *senders, uint64_t give_up)
{
    unsigned accepted = 0;

    while (accepted < SENDERS * ROUNDS && clock_now() < give_up) {
        int vector;
        unsigned who;

        if (!lapic_ops.has_interrupt(apic)) {
            sched_yield();
            continue;
        }
        vector = lapic_ops.accept_interrupt(apic);
        if (vector < 0)
            continue;
        who = ((unsigned)vector - senders[0].first) / VECTORS;
        assert_true(atomic_load(&senders[who].waiting[(unsigned)vector - senders[who].first]));
        lapic_ops.mmio_write(apic, 0xb0, 4, 0);
        atomic_store(&senders[who].waiting[(unsigned)vector - senders[who].first], false);
        accepted++;
    }
    return accepted;
}

static void test_none_is_lost(void **state)
{
    static struct sender senders[SENDERS];
    struct lapic_group *group;
    struct machine *machine;
    pthread_t thread[SENDERS];
    uint64_t give_up = clock_now() + 60 * NSEC_PER_SEC;
    void *apic;

    (void)state;
    assert_int_equal(machine_create(&machine), 0);
    assert_int_equal(lapic_group_create(machine, 1, 2000000, &group), 0);
    apic = lapic_group_apic(group, 0);
    lapic_ops.mmio_write(apic, 0xf0, 4, 0x1ff);
    for (unsigned i = 0; i < SENDERS; i++) {
        senders[i].group = group;
        senders[i].first = 0x20 + i * VECTORS;
        senders[i].give_up = give_up;
        assert_int_equal(pthread_create(&thread[i], NULL, send_all, &senders[i]), 0);
    }
    assert_int_equal(accept_all(apic, senders, give_up), SENDERS * ROUNDS);
    for (unsigned i = 0; i < SENDERS; i++)
        pthread_join(thread[i], NULL);
    assert_false(lapic_ops.has_interrupt(apic));
    machine_destroy(machine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_none_is_lost)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
