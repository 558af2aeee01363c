/*
 * Output of the guest's console: bytes taken quickly from a vCPU's thread, written by a thread of its own,
 * many at a time. Nothing is lost before writer_destroy() returns, unless it was told to discard.
 */
#ifndef VM_WRITER_H
#define VM_WRITER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"

struct writer;

/* `lossy`: a full buffer drops what comes (a socket whose reader stalls) instead of making the guest wait. */
nodiscard int writer_create(bool lossy, struct writer **out);
/* Waits until everything is written. */
void writer_destroy(struct writer *writer);

/* Where to write; -1: nowhere, bytes are dropped. Waits for a write in progress. Main thread. */
void writer_set_fd(struct writer *writer, int fd);
/* From now on, drop everything: the reader is stalled and the operator wants to leave. */
void writer_discard(struct writer *writer);

/* Any thread. */
void writer_put(struct writer *writer, const uint8_t *bytes, size_t len);

#endif
