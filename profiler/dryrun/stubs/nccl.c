/* NCCL. Processes of one dry run exchange small buffers of integers (counts, shapes, pickled objects) through files of
 * its folder, so that the branches which ranks take on each other's numbers are the true ones. Where no other process is,
 * every rank is assumed to hold what this one holds. Floating-point values are unknown; large buffers are not written. */
#include "stub.h"
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

enum { SUM, PRODUCT, MAX, MIN, AVERAGE };
enum { WAIT_MS = 20000, FIRST_FLOAT = 6 };

struct communicator {
    int ranks, rank, device, alone;  /* alone: nobody answers, or who belongs to it is not known */
    unsigned long long id, exchanges;
};
struct unique_id { char bytes[128]; };

static size_t width(int type) { static const int bytes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1}; return type >= 0 && type < 12 ? (size_t)bytes[type] : 1; }

/* ---- exchange ---- */

static void message_name(char *name, size_t most, const struct communicator *c, int rank, const char *end) {
    snprintf(name, most, "%s/ranks-%llx-%llu-%d%s", getenv("MEMPLAN_DRYRUN_REPORTS"), c->id, c->exchanges, rank, end);
}

static void put(const struct communicator *c, const void *from, size_t bytes) {
    char part[4096], whole[4096];
    message_name(part, sizeof part, c, c->rank, ".part");
    message_name(whole, sizeof whole, c, c->rank, "");
    FILE *file = fopen(part, "wb");
    if (!file) return;
    size_t written = fwrite(from, 1, bytes, file);
    if (fclose(file) == 0 && written == bytes) rename(part, whole);
}

static int take(struct communicator *c, int rank, void *to, size_t bytes) {
    char name[4096];
    message_name(name, sizeof name, c, rank, "");
    for (int waited = 0; waited < WAIT_MS; waited++) {
        FILE *file = fopen(name, "rb");
        if (file) {
            size_t read = fread(to, 1, bytes, file);
            fclose(file);
            return read == bytes;
        }
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    c->alone = 1;
    return 0;
}

static int exchanged(const struct communicator *c, size_t bytes, int type) {
    return !c->alone && c->ranks > 1 && bytes && bytes <= SMALL_COPY && type < FIRST_FLOAT && getenv("MEMPLAN_DRYRUN_REPORTS");
}

/* Every rank's buffer, one after another; this rank's own where another does not answer. NULL: not exchanged. */
static char *gathered(struct communicator *c, const void *from, size_t bytes, int type) {
    if (!exchanged(c, bytes, type)) return NULL;
    char *all = malloc(bytes * (size_t)c->ranks);
    if (!all) return NULL;
    put(c, from, bytes);
    for (int rank = 0; rank < c->ranks; rank++) {
        char *place = all + (size_t)rank * bytes;
        if (rank == c->rank || c->alone || !take(c, rank, place, bytes)) memcpy(place, from, bytes);
    }
    c->exchanges++;
    return all;
}

static void combine(char *to, const char *part, size_t count, int type, int op) {
    size_t bytes = width(type);
    for (size_t i = 0; i < count; i++) {
        long long left = 0, right = 0;
        memcpy(&left, to + i * bytes, bytes);
        memcpy(&right, part + i * bytes, bytes);
        if (type == 0) left = (int8_t)left, right = (int8_t)right;
        if (type == 2) left = (int32_t)left, right = (int32_t)right;
        if (op == SUM || op == AVERAGE) left += right;
        if (op == PRODUCT) left *= right;
        if ((op == MAX && right > left) || (op == MIN && right < left)) left = right;
        memcpy(to + i * bytes, &left, bytes); /* both architectures are little-endian */
    }
}

/* This rank's `count` elements from `first` on of the reduction of `total`; without an exchange, as if every rank held
 * the same. Large or floating-point buffers keep this rank's values. */
static void reduced(void *to, const void *from, size_t total, size_t first, size_t count, int type, int op, struct communicator *c) {
    size_t each = width(type), bytes = total * each;
    char *all = gathered(c, from, bytes, type);
    if (all) {
        for (int rank = 1; rank < c->ranks; rank++) combine(all, all + (size_t)rank * bytes, total, type, op);
    } else if (op == SUM && type < FIRST_FLOAT && bytes <= SMALL_COPY && (all = malloc(bytes))) {
        memcpy(all, from, bytes);
        for (int rank = 1; rank < c->ranks; rank++) combine(all, from, total, type, op);
    }
    const char *found = all ? all : from;
    if (to != found + first * each) stub_copy(to, found + first * each, count * each);
    free(all);
}

/* ---- the library ---- */

API int ncclGetVersion(int *version) { *version = 22707; return SUCCESS; }
API const char *ncclGetErrorString(UNUSED int s) { return "status of a stub"; }
API const char *ncclGetLastError(UNUSED void *c) { return ""; }
API int ncclGetUniqueId(struct unique_id *id) {
    static unsigned long long made;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    unsigned long long number = ((unsigned long long)getpid() << 40) ^ (unsigned long long)now.tv_nsec << 8 ^ ++made;
    memset(id, 7, sizeof *id);
    memcpy(id->bytes, &number, sizeof number);
    return SUCCESS;
}
static int joined(struct communicator **made, int ranks, int rank, const struct unique_id *id) {
    *made = stub_handle();
    **made = (struct communicator){.ranks = ranks, .rank = rank, .device = *stub_device()};
    memcpy(&(*made)->id, id->bytes, sizeof (*made)->id);
    return SUCCESS;
}
API int ncclCommInitRank(struct communicator **made, int ranks, struct unique_id id, int rank) { return joined(made, ranks, rank, &id); }
API int ncclCommInitRankConfig(struct communicator **made, int ranks, struct unique_id id, int rank, UNUSED void *config) { return joined(made, ranks, rank, &id); }
API int ncclCommInitRankScalable(struct communicator **made, int ranks, int rank, UNUSED int ids, struct unique_id *id, UNUSED void *config) { return joined(made, ranks, rank, id); }
API int ncclCommSplit(const struct communicator *from, UNUSED int color, UNUSED int key, struct communicator **made, UNUSED void *config) {
    *made = stub_handle();
    **made = *from;
    (*made)->alone = 1; /* who else has that color is not known */
    return SUCCESS;
}
API int ncclCommCount(const struct communicator *c, int *count) { *count = c->ranks; return SUCCESS; }
API int ncclCommUserRank(const struct communicator *c, int *rank) { *rank = c->rank; return SUCCESS; }
API int ncclCommCuDevice(const struct communicator *c, int *which) { *which = c->device; return SUCCESS; }
API int ncclCommGetAsyncError(UNUSED void *c, int *state) { *state = 0; return SUCCESS; }
API int ncclMemAlloc(void **address, size_t bytes) { return stub_allocate(address, bytes) ? 1 : 0; }
API int ncclMemFree(void *address) { return stub_free(address); }

API int ncclAllReduce(const void *from, void *to, size_t count, int type, int op, struct communicator *c, UNUSED void *s) {
    reduced(to, from, count, 0, count, type, op, c);
    return SUCCESS;
}
API int ncclReduce(const void *from, void *to, size_t count, int type, int op, int root, struct communicator *c, UNUSED void *s) {
    char unused[1];
    reduced(root == c->rank ? to : unused, from, count, 0, root == c->rank ? count : 0, type, op, c);
    return SUCCESS;
}
API int ncclReduceScatter(const void *from, void *to, size_t count, int type, int op, struct communicator *c, UNUSED void *s) {
    reduced(to, from, count * (size_t)c->ranks, count * (size_t)c->rank, count, type, op, c);
    return SUCCESS;
}
API int ncclAllGather(const void *from, void *to, size_t count, int type, struct communicator *c, UNUSED void *s) {
    size_t bytes = count * width(type);
    char *all = gathered(c, from, bytes, type);
    for (int rank = 0; rank < c->ranks && bytes <= SMALL_COPY; rank++)
        stub_copy((char *)to + (size_t)rank * bytes, all ? all + (size_t)rank * bytes : from, bytes);
    free(all);
    return SUCCESS;
}
API int ncclBroadcast(const void *from, void *to, size_t count, int type, int root, struct communicator *c, UNUSED void *s) {
    size_t bytes = count * width(type);
    char *sent = root != c->rank && exchanged(c, bytes, type) ? malloc(bytes) : NULL;
    if (root == c->rank && exchanged(c, bytes, type)) put(c, from, bytes);
    const void *found = sent && take(c, root, sent, bytes) ? sent : from;
    c->exchanges++;
    if (to != found) stub_copy(to, found, bytes);
    free(sent);
    return SUCCESS;
}
API int ncclBcast(void *buffer, size_t count, int type, int root, struct communicator *c, void *s) { return ncclBroadcast(buffer, buffer, count, type, root, c, s); }
