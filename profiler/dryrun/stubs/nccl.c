/* NCCL: every rank is assumed to hold what this one holds, so that counts and shapes that ranks compare agree. Small
 * buffers are written, large ones are not. */
#include "stub.h"

struct communicator { int ranks, rank, device; };
struct unique_id { char bytes[128]; };
enum { SUM, PRODUCT };

static size_t width(int type) { static const int bytes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1}; return type >= 0 && type < 12 ? (size_t)bytes[type] : 1; }

API int ncclGetVersion(int *version) { *version = 22707; return SUCCESS; }
API const char *ncclGetErrorString(UNUSED int s) { return "status of a stub"; }
API const char *ncclGetLastError(UNUSED void *c) { return ""; }
API int ncclGetUniqueId(struct unique_id *id) { memset(id, 7, sizeof *id); return SUCCESS; }
API int ncclCommInitRank(struct communicator **made, int ranks, UNUSED struct unique_id id, int rank) {
    *made = stub_handle();
    **made = (struct communicator){ranks, rank, *stub_device()};
    return SUCCESS;
}
API int ncclCommInitRankConfig(struct communicator **made, int ranks, struct unique_id id, int rank, UNUSED void *config) { return ncclCommInitRank(made, ranks, id, rank); }
API int ncclCommInitRankScalable(struct communicator **made, int ranks, int rank, UNUSED int ids, UNUSED struct unique_id *id, UNUSED void *config) {
    *made = stub_handle();
    **made = (struct communicator){ranks, rank, *stub_device()};
    return SUCCESS;
}
API int ncclCommSplit(const struct communicator *from, UNUSED int color, UNUSED int key, struct communicator **made, UNUSED void *config) { *made = stub_handle(); **made = *from; return SUCCESS; }
API int ncclCommCount(const struct communicator *c, int *count) { *count = c->ranks; return SUCCESS; }
API int ncclCommUserRank(const struct communicator *c, int *rank) { *rank = c->rank; return SUCCESS; }
API int ncclCommCuDevice(const struct communicator *c, int *which) { *which = c->device; return SUCCESS; }
API int ncclCommGetAsyncError(UNUSED void *c, int *state) { *state = 0; return SUCCESS; }
API int ncclMemAlloc(void **address, size_t bytes) { return stub_allocate(address, bytes) ? 1 : 0; }
API int ncclMemFree(void *address) { return stub_free(address); }

/* A sum of integers over equal ranks is a multiple; of anything else the values are unknown. */
static void reduced(void *to, const void *from, size_t count, int type, int op, int ranks) {
    size_t bytes = count * width(type);
    if (to != from) stub_copy(to, from, bytes);
    if (op != SUM || bytes > SMALL_COPY) return;
    if (type == 2 || type == 3)
        for (size_t i = 0; i < count; i++) ((int32_t *)to)[i] *= ranks;
    if (type == 4 || type == 5)
        for (size_t i = 0; i < count; i++) ((int64_t *)to)[i] *= ranks;
}
API int ncclAllReduce(const void *from, void *to, size_t count, int type, int op, const struct communicator *c, UNUSED void *s) { reduced(to, from, count, type, op, c->ranks); return SUCCESS; }
API int ncclReduce(const void *from, void *to, size_t count, int type, int op, int root, const struct communicator *c, UNUSED void *s) {
    if (root == c->rank) reduced(to, from, count, type, op, c->ranks);
    return SUCCESS;
}
API int ncclReduceScatter(const void *from, void *to, size_t count, int type, int op, const struct communicator *c, UNUSED void *s) {
    reduced(to, (const char *)from + (size_t)c->rank * count * width(type), count, type, op, c->ranks);
    return SUCCESS;
}
API int ncclAllGather(const void *from, void *to, size_t count, int type, const struct communicator *c, UNUSED void *s) {
    size_t bytes = count * width(type);
    for (int rank = 0; rank < c->ranks && bytes <= SMALL_COPY; rank++) stub_copy((char *)to + (size_t)rank * bytes, from, bytes);
    return SUCCESS;
}
API int ncclBroadcast(const void *from, void *to, size_t count, int type, UNUSED int root, UNUSED void *c, UNUSED void *s) {
    if (to != from) stub_copy(to, from, count * width(type));
    return SUCCESS;
}
