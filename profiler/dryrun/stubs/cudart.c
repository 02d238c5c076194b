/* The CUDA runtime. Its structs are known by the places of their fields, which differ between CUDA 12 and 13. */
#include "stub.h"
#include <dlfcn.h>
#include <time.h>
#include "layout.h"

typedef struct { unsigned x, y, z; } dim3;

static int fail(int error) {
    if (error) *stub_error() = error;
    return error;
}

API int cudaMalloc(void **address, size_t bytes) { return fail(stub_allocate(address, bytes)); }
API int cudaFree(void *address) { return fail(stub_free(address)); }
API int cudaMallocAsync(void **address, size_t bytes, UNUSED void *s) { return cudaMalloc(address, bytes); }
API int cudaFreeAsync(void *address, UNUSED void *s) { return cudaFree(address); }
API int cudaMallocManaged(void **a, size_t bytes, UNUSED unsigned f) { return fail(stub_allocate_host(a, bytes, 1)); }
API int cudaHostAlloc(void **a, size_t bytes, UNUSED unsigned f) { return fail(stub_allocate_host(a, bytes, 0)); }
API int cudaMallocHost(void **a, size_t bytes) { return fail(stub_allocate_host(a, bytes, 0)); }
API int cudaFreeHost(void *address) { return fail(stub_free_host(address)); }
API int cudaHostGetDevicePointer(void **a, void *host, UNUSED unsigned f) { *a = host; return SUCCESS; }

API int cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
    stub_memory(*stub_device(), free_bytes, total_bytes);
    return SUCCESS;
}

API int cudaGetDeviceCount(int *count) { *count = stub_devices(); return SUCCESS; }
API int cudaGetDevice(int *which) { *which = *stub_device(); return SUCCESS; }
API int cudaSetDevice(int which) {
    if (which < 0 || which >= stub_devices()) return fail(INVALID_DEVICE);
    *stub_device() = which;
    return SUCCESS;
}
API int cudaGetLastError(void) { int error = *stub_error(); *stub_error() = SUCCESS; return error; }
API int cudaPeekAtLastError(void) { return *stub_error(); }
API const char *cudaGetErrorString(int e) { return e == OUT_OF_MEMORY ? "out of memory" : e ? "error of a stub" : "no error"; }
API const char *cudaGetErrorName(int e) { return e == OUT_OF_MEMORY ? "cudaErrorMemoryAllocation" : e ? "cudaErrorUnknown" : "cudaSuccess"; }
API int cudaDriverGetVersion(int *version) { *version = STUB_CUDA; return SUCCESS; }
API int cudaRuntimeGetVersion(int *version) { *version = STUB_CUDA; return SUCCESS; }
API int cudaDeviceGetAttribute(int *value, int attribute, UNUSED int which) { return stub_attribute(value, attribute); }

API int cudaGetDeviceProperties(void *to, int which) {
    const struct card *c = stub_card();
    memset(to, 0, PROPERTIES_BYTES);
    snprintf((char *)to + AT_name, 256, "%s", c->name);
    snprintf((char *)to + AT_uuid, 16, "memplan stub %02d", which);
#define INT(field, value) (*(int *)((char *)to + AT_##field) = (int)(value))
#define SIZE(field, value) (*(size_t *)((char *)to + AT_##field) = (size_t)(value))
    SIZE(totalGlobalMem, c->total_bytes);
    SIZE(sharedMemPerBlock, 49152);
    INT(regsPerBlock, 65536);
    INT(warpSize, 32);
    SIZE(memPitch, 2147483647);
    INT(maxThreadsPerBlock, 1024);
    int *dimensions = (int *)((char *)to + AT_maxThreadsDim), *grid = (int *)((char *)to + AT_maxGridSize);
    dimensions[0] = dimensions[1] = 1024;
    dimensions[2] = 64;
    grid[0] = 2147483647;
    grid[1] = grid[2] = 65535;
    SIZE(totalConstMem, 65536);
    INT(major, c->major);
    INT(minor, c->minor);
    SIZE(textureAlignment, 512);
    INT(multiProcessorCount, c->multiprocessors);
    INT(canMapHostMemory, 1);
    INT(concurrentKernels, 1);
    INT(pciBusID, which + 1);
    INT(asyncEngineCount, 2);
    INT(unifiedAddressing, 1);
    INT(memoryBusWidth, c->bus_bits);
    INT(l2CacheSize, c->l2_bytes);
    INT(maxThreadsPerMultiProcessor, c->threads_per_multiprocessor);
    INT(streamPrioritiesSupported, 1);
    INT(globalL1CacheSupported, 1);
    INT(localL1CacheSupported, 1);
    SIZE(sharedMemPerMultiprocessor, c->shared_per_multiprocessor);
    INT(regsPerMultiprocessor, 65536);
    INT(managedMemory, 1);
    INT(concurrentManagedAccess, 1);
    INT(computePreemptionSupported, 1);
    INT(cooperativeLaunch, 1);
    SIZE(sharedMemPerBlockOptin, c->shared_per_block_optin);
    INT(maxBlocksPerMultiProcessor, c->blocks_per_multiprocessor);
    SIZE(reservedSharedMemPerBlock, 1024);
    INT(memoryPoolsSupported, 1);
#undef INT
#undef SIZE
    return SUCCESS;
}
API int cudaGetDeviceProperties_v2(void *to, int which) { return cudaGetDeviceProperties(to, which); }

/* Types of memory: 0 not registered, 1 host, 2 device, 3 managed. */
API int cudaPointerGetAttributes(void *to, const void *address) {
    int owner = stub_owner(address);
    memset(to, 0, POINTER_BYTES);
    *(int *)((char *)to + POINTER_type) = owner >= 0 ? 2 : owner == -2 ? 3 : owner == -3 ? 1 : 0;
    *(int *)((char *)to + POINTER_device) = owner >= 0 ? owner : 0;
    *(const void **)((char *)to + POINTER_devicePointer) = owner == -1 ? NULL : address;
    *(const void **)((char *)to + POINTER_hostPointer) = owner >= 0 ? NULL : address;
    return SUCCESS;
}

API int cudaMemcpyAsync(void *to, const void *from, size_t bytes, UNUSED int kind, UNUSED void *s) { stub_copy(to, from, bytes); return SUCCESS; }
API int cudaMemcpy(void *to, const void *from, size_t bytes, UNUSED int kind) { stub_copy(to, from, bytes); return SUCCESS; }
API int cudaMemcpyPeerAsync(void *to, UNUSED int a, const void *from, UNUSED int b, size_t bytes, UNUSED void *s) { stub_copy(to, from, bytes); return SUCCESS; }
API int cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height, UNUSED int kind, UNUSED void *s) {
    if (width * height <= SMALL_COPY)
        for (size_t row = 0; row < height; row++) memmove((char *)to + row * to_pitch, (const char *)from + row * from_pitch, width);
    return SUCCESS;
}
API int cudaMemsetAsync(void *to, int value, size_t bytes, UNUSED void *s) { stub_fill(to, value, bytes); return SUCCESS; }
API int cudaMemset(void *to, int value, size_t bytes) { stub_fill(to, value, bytes); return SUCCESS; }

static int new_stream(void **stream, int priority) {
    struct stream *made = stub_handle();
    made->device = *stub_device();
    made->priority = priority;
    *stream = made;
    return SUCCESS;
}
static struct stream *known(void *stream) { return (uintptr_t)stream > 4096 ? stream : NULL; /* 0, 1, 2: the default streams */ }

API int cudaStreamCreate(void **stream) { return new_stream(stream, 0); }
API int cudaStreamCreateWithFlags(void **stream, UNUSED unsigned f) { return new_stream(stream, 0); }
API int cudaStreamCreateWithPriority(void **stream, UNUSED unsigned f, int priority) { return new_stream(stream, priority); }
API int cudaStreamDestroy(void *stream) { free(known(stream)); return SUCCESS; }
API int cudaStreamGetPriority(void *stream, int *priority) { *priority = known(stream) ? known(stream)->priority : 0; return SUCCESS; }
API int cudaStreamGetFlags(UNUSED void *stream, unsigned *flags) { *flags = 1; return SUCCESS; }
API int cudaStreamGetDevice(void *stream, int *which) { *which = known(stream) ? known(stream)->device : *stub_device(); return SUCCESS; }
API int cudaStreamGetId(void *stream, unsigned long long *id) { *id = (uintptr_t)stream; return SUCCESS; }
API int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return SUCCESS; }

/* Capture of CUDA graphs: allocations are made while capturing, as on a device, and a launch does nothing. */
static unsigned long long captures;
API int cudaStreamBeginCapture(void *stream, UNUSED int mode) {
    if (!known(stream)) return fail(INVALID_VALUE);
    known(stream)->capturing = 1;
    known(stream)->capture = __atomic_add_fetch(&captures, 1, __ATOMIC_SEQ_CST);
    known(stream)->graph = stub_handle();
    return SUCCESS;
}
API int cudaStreamEndCapture(void *stream, void **graph) {
    if (!known(stream) || !known(stream)->capturing) return fail(INVALID_VALUE);
    known(stream)->capturing = 0;
    *graph = known(stream)->graph;
    return SUCCESS;
}
API int cudaStreamIsCapturing(void *stream, int *status) { *status = known(stream) ? known(stream)->capturing : 0; return SUCCESS; }
static int capture_info(void *stream, int *status, unsigned long long *id, void **graph, size_t *dependencies) {
    struct stream *found = known(stream);
    *status = found ? found->capturing : 0;
    if (!*status) return SUCCESS;
    if (id) *id = found->capture;
    if (graph) *graph = found->graph;
    if (dependencies) *dependencies = 0;
    return SUCCESS;
}
API int cudaStreamGetCaptureInfo_v2(void *s, int *status, unsigned long long *id, void **graph, UNUSED void *d, size_t *n) { return capture_info(s, status, id, graph, n); }
API int cudaStreamGetCaptureInfo_v3(void *s, int *status, unsigned long long *id, void **graph, UNUSED void *d, UNUSED void *e, size_t *n) { return capture_info(s, status, id, graph, n); }
#if STUB_CUDA >= 13000
API int cudaStreamGetCaptureInfo(void *s, int *status, unsigned long long *id, void **graph, UNUSED void *d, UNUSED void *e, size_t *n) { return capture_info(s, status, id, graph, n); }
#else
API int cudaStreamGetCaptureInfo(void *s, int *status, unsigned long long *id) { return capture_info(s, status, id, NULL, NULL); }
#endif
API int cudaGraphInstantiate(void **made) { *made = stub_handle(); return SUCCESS; }
API int cudaGraphInstantiateWithFlags(void **made) { *made = stub_handle(); return SUCCESS; }
API int cudaGraphCreate(void **made) { *made = stub_handle(); return SUCCESS; }
API int cudaGraphGetNodes(UNUSED void *graph, UNUSED void *nodes, size_t *count) { *count = 1; return SUCCESS; }

/* An event is the host's time of its record. */
API int cudaEventCreateWithFlags(void **event, UNUSED unsigned f) { *event = stub_handle(); return SUCCESS; }
API int cudaEventCreate(void **event) { *event = stub_handle(); return SUCCESS; }
API int cudaEventDestroy(void *event) { free(event); return SUCCESS; }
API int cudaEventRecord(void *event, UNUSED void *s) { clock_gettime(CLOCK_MONOTONIC, (struct timespec *)event); return SUCCESS; }
API int cudaEventRecordWithFlags(void *event, void *s, UNUSED unsigned f) { return cudaEventRecord(event, s); }
API int cudaEventElapsedTime(float *ms, const struct timespec *a, const struct timespec *b) {
    *ms = (float)(b->tv_sec - a->tv_sec) * 1e3f + (float)(b->tv_nsec - a->tv_nsec) * 1e-6f;
    return SUCCESS;
}

API int cudaFuncGetAttributes(void *to, UNUSED const void *function) {
    memset(to, 0, FUNCTION_BYTES);
#define INT(field, value) (*(int *)((char *)to + FUNCTION_##field) = (value))
    INT(maxThreadsPerBlock, 1024);
    INT(numRegs, 32);
    INT(ptxVersion, stub_card()->architecture);
    INT(binaryVersion, stub_card()->architecture);
    INT(maxDynamicSharedSizeBytes, 49152);
#undef INT
    return SUCCESS;
}
API int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, UNUSED const void *f, int threads, UNUSED size_t s) { *blocks = stub_threads_on(threads); return SUCCESS; }
API int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, UNUSED const void *f, int threads, UNUSED size_t s, UNUSED unsigned g) { *blocks = stub_threads_on(threads); return SUCCESS; }

static int nothing(void) { return SUCCESS; }
static int entry_point(const char *name, void **function, int *status) {
    static const char *const endings[] = {"_v4", "_v3", "_v2", ""};
    char full[128];
    *function = NULL;
    for (int i = 0; i < 4 && !*function; i++) {
        snprintf(full, sizeof full, "%s%s", name, endings[i]);
        *function = dlsym(RTLD_DEFAULT, full);
    }
    if (!*function) *function = (void *)nothing;
    if (status) *status = 0;
    return SUCCESS;
}
API int cudaGetDriverEntryPointByVersion(const char *name, void **f, UNUSED unsigned v, UNUSED unsigned long long g, int *status) { return entry_point(name, f, status); }
API int cudaGetDriverEntryPoint(const char *name, void **f, UNUSED unsigned long long g, int *status) { return entry_point(name, f, status); }
API int cudaGetSymbolAddress(void **address, UNUSED const void *symbol) { static char room[65536]; *address = room; return SUCCESS; }
API int cudaDeviceGetPCIBusId(char *to, int length, int which) { snprintf(to, (size_t)length, "0000:%02x:00.0", which + 1); return SUCCESS; }
API int cudaDeviceGetByPCIBusId(int *which, UNUSED const char *id) { *which = 0; return SUCCESS; }
API int cudaDeviceCanAccessPeer(int *can, UNUSED int a, UNUSED int b) { *can = 0; return SUCCESS; }
API int cudaDeviceGetDefaultMemPool(void **pool, UNUSED int which) { *pool = stub_handle(); return SUCCESS; }
API int cudaLibraryLoadData(void **made) { *made = stub_handle(); return SUCCESS; }
API int cudaLibraryGetKernel(void **made) { *made = stub_handle(); return SUCCESS; }
API int cudaGetFuncBySymbol(void **made, const void *f) { *made = (void *)f; return SUCCESS; }
API int __cudaGetKernel(void **made, const void *f) { *made = (void *)f; return SUCCESS; }
API void **__cudaRegisterFatBinary(UNUSED void *f) { return stub_handle(); }
API void __cudaRegisterFatBinaryEnd(UNUSED void **h) {}
API void __cudaUnregisterFatBinary(UNUSED void **h) {}
API void __cudaRegisterFunction(void) {}
API void __cudaRegisterVar(void) {}
API char __cudaInitModule(UNUSED void **h) { return 1; }
API unsigned __cudaPushCallConfiguration(void) { return 0; }
API int __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void **stream) {
    *grid = *block = (dim3){1, 1, 1};
    *shared = 0;
    *stream = NULL;
    return SUCCESS;
}
