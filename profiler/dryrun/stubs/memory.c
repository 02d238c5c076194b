/* Devices and their memory: one set for the runtime, the driver and NVML. */
#include "stub.h"
#include <pthread.h>
#include <sys/mman.h>

#define BASE 0x100000000000UL /* below what programs and shared libraries are mapped to */
#define SPACE (1UL << 46)     /* address space of all devices: a few times what one of them may reserve at once */
#define GRANULE (2 * MIB)
#define BUCKETS 65536

struct range {
    uintptr_t address;
    size_t bytes;
    int device; /* -2 managed memory, -3 pinned host memory */
    struct range *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct range *table[BUCKETS];
static size_t used[MOST_DEVICES];
static uintptr_t lowest[MOST_DEVICES]; /* addresses descend from the end of a device's span */
static __thread int device;
static __thread int last_error;
static struct card card;
static int devices;
static size_t span; /* of one device */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static long number(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text && *text ? atol(text) : otherwise;
}

static void read_environment(void) {
    const char *name = getenv("MEMPLAN_STUB_NAME");
    int capability = (int)number("MEMPLAN_STUB_CAPABILITY", 80);
    snprintf(card.name, sizeof card.name, "%s", name ? name : "stub GPU");
    card.major = capability / 10;
    card.minor = capability % 10;
    card.architecture = (int)number("MEMPLAN_STUB_ARCHITECTURE", capability);
    card.multiprocessors = (int)number("MEMPLAN_STUB_MULTIPROCESSORS", 108);
    card.total_bytes = (size_t)number("MEMPLAN_STUB_TOTAL_BYTES", 80L << 30);
    card.context_bytes = (size_t)number("MEMPLAN_STUB_CONTEXT_BYTES", 0);
    card.shared_per_multiprocessor = (int)number("MEMPLAN_STUB_SHARED_PER_MULTIPROCESSOR", 167936);
    card.shared_per_block_optin = card.shared_per_multiprocessor - (capability == 75 ? 0 : 1024);
    card.threads_per_multiprocessor = (int)number("MEMPLAN_STUB_THREADS_PER_MULTIPROCESSOR", 2048);
    card.blocks_per_multiprocessor = (int)number("MEMPLAN_STUB_BLOCKS_PER_MULTIPROCESSOR", 32);
    card.l2_bytes = (int)number("MEMPLAN_STUB_L2_BYTES", 40 << 20);
    card.bus_bits = (int)number("MEMPLAN_STUB_BUS_BITS", 384);
    devices = (int)number("MEMPLAN_STUB_DEVICES", 1);
    if (devices > MOST_DEVICES) devices = MOST_DEVICES;
    span = SPACE / GRANULE / (devices > 0 ? devices : 1) * GRANULE;
    for (int index = 0; index < MOST_DEVICES; index++) lowest[index] = BASE + span * (index + 1);
}

API const struct card *stub_card(void) {
    pthread_once(&once, read_environment);
    return &card;
}

API int stub_devices(void) {
    stub_card();
    return devices;
}

API int *stub_device(void) { return &device; }
API int *stub_error(void) { return &last_error; }
API void *stub_handle(void) { return calloc(1, 512); }

static size_t rounded(size_t bytes) { return (bytes + GRANULE - 1) / GRANULE * GRANULE; }

static void *map(void *where, size_t bytes) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (where ? MAP_FIXED : 0);
    void *found = mmap(where, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    return found == MAP_FAILED ? NULL : found;
}

static unsigned bucket(uintptr_t address) { return (unsigned)(address >> 12) * 2654435761u >> 16; }

static void enter(void *address, size_t bytes, int owner) {
    struct range *made = malloc(sizeof *made);
    struct range **first = &table[bucket((uintptr_t)address)];
    *made = (struct range){(uintptr_t)address, bytes, owner, *first};
    *first = made;
}

static int take_out(void *address, struct range *found) {
    struct range **place = &table[bucket((uintptr_t)address)];
    while (*place && (*place)->address != (uintptr_t)address) place = &(*place)->next;
    if (!*place) return 0;
    struct range *gone = *place;
    *found = *gone;
    *place = gone->next;
    free(gone);
    return 1;
}

/* Takes `bytes` of a device's memory; false where it has not so much. The lock is held. */
static int charge(int which, size_t bytes) {
    if (stub_card()->context_bytes + used[which] + bytes > card.total_bytes) return 0;
    used[which] += bytes;
    return 1;
}

/* Address space at the lower end of the device's span. The lock is held. */
static void *lower(int which, size_t bytes) {
    stub_card();
    if (bytes > lowest[which] - (BASE + span * which)) return NULL;
    void *found = map((void *)(lowest[which] - bytes), bytes);
    if (found) lowest[which] -= bytes;
    return found;
}

API int stub_allocate(void **address, size_t bytes) {
    size_t whole = rounded(bytes);
    *address = NULL;
    if (!bytes) return SUCCESS;
    pthread_mutex_lock(&lock);
    int fits = charge(device, whole);
    if (fits && !(*address = lower(device, whole))) used[device] -= whole;
    if (*address) enter(*address, whole, device);
    pthread_mutex_unlock(&lock);
    return *address ? SUCCESS : OUT_OF_MEMORY;
}

static int give_back(void *address) {
    struct range found;
    pthread_mutex_lock(&lock);
    int known = take_out(address, &found);
    if (known) {
        munmap(address, found.bytes);
        if (found.device >= 0) used[found.device] -= found.bytes;
    }
    pthread_mutex_unlock(&lock);
    return known;
}

API int stub_free(void *address) { return !address || give_back(address) ? SUCCESS : INVALID_VALUE; }

API int stub_allocate_host(void **address, size_t bytes, int managed) {
    *address = map(NULL, bytes ? bytes : 1);
    if (!*address) return OUT_OF_MEMORY;
    pthread_mutex_lock(&lock);
    enter(*address, bytes ? bytes : 1, managed ? -2 : -3);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

API int stub_free_host(void *address) { return stub_free(address); }

API int stub_owner(const void *address) {
    uintptr_t at = (uintptr_t)address;
    if (at >= BASE && at < BASE + SPACE) return (int)((at - BASE) / span);
    pthread_mutex_lock(&lock);
    struct range *entry = table[bucket(at)];
    while (entry && entry->address != at) entry = entry->next;
    int owner = entry ? entry->device : -1;
    pthread_mutex_unlock(&lock);
    return owner;
}

API void stub_memory(int which, size_t *free_bytes, size_t *total_bytes) {
    size_t total = stub_card()->total_bytes, taken = card.context_bytes + used[which];
    if (total_bytes) *total_bytes = total;
    if (free_bytes) *free_bytes = taken < total ? total - taken : 0;
}

/* Physical memory without an address, as expandable segments use it: the handle is its size and device. */
struct physical {
    size_t bytes;
    int device;
};

API int stub_physical_create(size_t bytes, int which, unsigned long long *handle) {
    pthread_mutex_lock(&lock);
    int fits = charge(which, bytes);
    pthread_mutex_unlock(&lock);
    if (!fits) return OUT_OF_MEMORY;
    struct physical *made = malloc(sizeof *made);
    *made = (struct physical){bytes, which};
    *handle = (unsigned long long)(uintptr_t)made;
    return SUCCESS;
}

API int stub_physical_release(unsigned long long handle) {
    struct physical *gone = (struct physical *)(uintptr_t)handle;
    pthread_mutex_lock(&lock);
    used[gone->device] -= gone->bytes;
    pthread_mutex_unlock(&lock);
    free(gone);
    return SUCCESS;
}

API int stub_reserve(void **address, size_t bytes) {
    pthread_mutex_lock(&lock);
    *address = lower(device, rounded(bytes));
    pthread_mutex_unlock(&lock);
    return *address ? SUCCESS : OUT_OF_MEMORY;
}

API int stub_unreserve(void *address, size_t bytes) { return munmap(address, rounded(bytes)) ? INVALID_VALUE : SUCCESS; }

API void stub_discard(void *address, size_t bytes) { madvise(address, bytes, MADV_DONTNEED); }

static __thread long long answer;
static __thread int answer_waits;

API void stub_answer(long long value) {
    answer = value;
    answer_waits = 1;
}

API void stub_forget_answer(void) { answer_waits = 0; }

API void stub_copy(void *to, const void *from, size_t bytes) {
    if (answer_waits && (bytes == 4 || bytes == 8) && stub_owner(to) < 0) {
        memcpy(to, &answer, bytes); /* both architectures are little-endian */
    } else if (bytes <= SMALL_COPY) {
        memmove(to, from, bytes);
    }
}

/* Zero in a large range: the pages are given back, which reads as zero. Another value is not written there. */
API void stub_fill(void *to, int value, size_t bytes) {
    if (bytes <= SMALL_COPY) {
        memset(to, value, bytes);
    } else if (!value) {
        uintptr_t first = ((uintptr_t)to + 65535) & ~(uintptr_t)65535, end = ((uintptr_t)to + bytes) & ~(uintptr_t)65535;
        memset(to, 0, first - (uintptr_t)to);
        stub_discard((void *)first, end - first);
        memset((void *)end, 0, (uintptr_t)to + bytes - end);
    }
}

API int stub_threads_on(int block) {
    int blocks = stub_card()->threads_per_multiprocessor / (block > 0 ? block : 1);
    return blocks < 1 ? 1 : blocks > 16 ? 16 : blocks;
}

/* The runtime and the driver number these attributes alike. */
API int stub_attribute(int *value, int attribute) {
    const struct card *c = stub_card();
    switch (attribute) {
    case 1: case 2: case 3: *value = 1024; break;      /* threads per block, block x and y */
    case 4: *value = 64; break;                        /* block z */
    case 5: case 11: *value = 2147483647; break;       /* grid x, pitch */
    case 6: case 7: *value = 65535; break;             /* grid y and z */
    case 8: *value = 49152; break;                     /* shared memory per block */
    case 9: case 12: case 82: *value = 65536; break;   /* constant memory, registers per block and multiprocessor */
    case 10: *value = 32; break;                       /* warp */
    case 13: case 36: *value = 1500000; break;         /* clocks in kHz */
    case 14: case 111: *value = attribute == 14 ? 512 : 1024; break; /* texture alignment, reserved shared memory */
    case 16: *value = c->multiprocessors; break;
    case 37: *value = c->bus_bits; break;
    case 38: *value = c->l2_bytes; break;
    case 39: *value = c->threads_per_multiprocessor; break;
    case 75: *value = c->major; break;
    case 76: *value = c->minor; break;
    case 81: *value = c->shared_per_multiprocessor; break;
    case 97: *value = c->shared_per_block_optin; break;
    case 106: *value = c->blocks_per_multiprocessor; break;
    case 19: case 31: case 40: case 41: case 78: case 79: case 80: case 83: case 89: case 90: case 95: case 96:
    case 102: case 115: *value = 1; break; /* host mapping, concurrency, unified and managed memory, VMM, pools */
    default: *value = 0;
    }
    return SUCCESS;
}
