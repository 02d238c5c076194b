/* What every stub library shares: the devices, their memory, and the handles that programs are given.
 *
 * The stub libraries stand in for CUDA's where no GPU is present. Every function succeeds and computes nothing. Device
 * memory is address space that nobody backs until somebody writes to it, so that small copies are real and what was
 * never written reads as zero. */
#ifndef MEMPLAN_STUB_H
#define MEMPLAN_STUB_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define API __attribute__((visibility("default")))
#define UNUSED __attribute__((unused))
#define MOST_DEVICES 16
#define MIB ((size_t)1 << 20)
#define SMALL_COPY MIB /* a copy or a fill up to this size is done, a larger one is not */

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101 };

struct card { /* what programs ask of a device; read once from the environment */
    char name[128];
    int major, minor, architecture, multiprocessors, threads_per_multiprocessor, blocks_per_multiprocessor;
    int shared_per_multiprocessor, shared_per_block_optin, l2_bytes, bus_bits;
    size_t total_bytes, context_bytes;
};

struct stream {
    int device, priority, capturing;
    unsigned long long capture;
    void *graph;
};

/* memory.c, which the library memplan_stub_memory holds; the other libraries find it there */
extern const struct card *stub_card(void);
extern int stub_devices(void);
extern int *stub_device(void);   /* this thread's current device */
extern int *stub_error(void);    /* this thread's last error of the runtime */
extern void *stub_handle(void);  /* a new opaque object */
extern int stub_allocate(void **address, size_t bytes);
extern int stub_free(void *address);
extern int stub_allocate_host(void **address, size_t bytes, int managed);
extern int stub_free_host(void *address);
extern int stub_owner(const void *address); /* the device that an address belongs to, -1: the host, -2: managed, -3: pinned */
extern void stub_memory(int device, size_t *free_bytes, size_t *total_bytes);
extern int stub_physical_create(size_t bytes, int device, unsigned long long *handle);
extern int stub_physical_release(unsigned long long handle);
extern int stub_reserve(void **address, size_t bytes);
extern int stub_unreserve(void *address, size_t bytes);
extern void stub_discard(void *address, size_t bytes);
extern void stub_copy(void *to, const void *from, size_t bytes);
extern void stub_fill(void *to, int value, size_t bytes);
extern int stub_attribute(int *value, int attribute);
extern void stub_answer(long long value); /* copies of 4 or 8 bytes to the host read this value, until it is forgotten */
extern void stub_forget_answer(void);
extern int stub_threads_on(int block);    /* blocks of that many threads that one multiprocessor holds */
#endif
