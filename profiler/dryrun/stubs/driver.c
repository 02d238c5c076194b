/* The CUDA driver, as Triton, bitsandbytes and expandable segments call it. */
#include "stub.h"
#include <dlfcn.h>

enum { NOT_FOUND = 500 };

API int cuInit(UNUSED unsigned flags) { return SUCCESS; }
API int cuDriverGetVersion(int *version) { *version = STUB_CUDA; return SUCCESS; }
API int cuGetErrorString(int e, const char **text) { *text = e == OUT_OF_MEMORY ? "out of memory" : e ? "error of a stub" : "no error"; return SUCCESS; }
API int cuGetErrorName(int e, const char **text) { *text = e == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : e ? "CUDA_ERROR_UNKNOWN" : "CUDA_SUCCESS"; return SUCCESS; }

API int cuDeviceGetCount(int *count) { *count = stub_devices(); return SUCCESS; }
API int cuDeviceGet(int *which, int ordinal) { *which = ordinal; return ordinal < stub_devices() ? SUCCESS : INVALID_DEVICE; }
API int cuDeviceGetName(char *to, int length, UNUSED int which) { snprintf(to, (size_t)length, "%s", stub_card()->name); return SUCCESS; }
API int cuDeviceGetUuid(char *to, int which) { snprintf(to, 16, "memplan stub %02d", which); return SUCCESS; }
API int cuDeviceGetUuid_v2(char *to, int which) { return cuDeviceGetUuid(to, which); }
API int cuDeviceTotalMem_v2(size_t *bytes, UNUSED int which) { *bytes = stub_card()->total_bytes; return SUCCESS; }
API int cuDeviceComputeCapability(int *major, int *minor, UNUSED int which) { *major = stub_card()->major; *minor = stub_card()->minor; return SUCCESS; }
API int cuDeviceGetAttribute(int *value, int attribute, UNUSED int which) { return stub_attribute(value, attribute); }
API int cuDeviceCanAccessPeer(int *can, UNUSED int a, UNUSED int b) { *can = 0; return SUCCESS; }
API int cuDeviceGetPCIBusId(char *to, int length, int which) { snprintf(to, (size_t)length, "0000:%02x:00.0", which + 1); return SUCCESS; }

static char contexts[MOST_DEVICES]; /* one primary context of each device: its address */
API int cuDevicePrimaryCtxRetain(void **context, int which) { *context = &contexts[which]; return SUCCESS; }
API int cuDevicePrimaryCtxGetState(UNUSED int which, unsigned *flags, int *active) { *flags = 0; *active = 1; return SUCCESS; }
API int cuCtxGetCurrent(void **context) { *context = &contexts[*stub_device()]; return SUCCESS; }
API int cuCtxSetCurrent(char *context) { if (context) *stub_device() = (int)(context - contexts); return SUCCESS; }
API int cuCtxPushCurrent_v2(char *context) { return cuCtxSetCurrent(context); }
API int cuCtxPopCurrent_v2(void **context) { return context ? cuCtxGetCurrent(context) : SUCCESS; }
API int cuCtxGetDevice(int *which) { *which = *stub_device(); return SUCCESS; }
API int cuCtxGetApiVersion(UNUSED void *context, unsigned *version) { *version = STUB_CUDA; return SUCCESS; }

API int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) { stub_memory(*stub_device(), free_bytes, total); return SUCCESS; }
API int cuMemAlloc_v2(void **address, size_t bytes) { return stub_allocate(address, bytes); }
API int cuMemAllocManaged(void **address, size_t bytes, UNUSED unsigned f) { return stub_allocate_host(address, bytes, 1); }
API int cuMemFree_v2(void *address) { return stub_free(address); }
API int cuMemHostAlloc(void **address, size_t bytes, UNUSED unsigned f) { return stub_allocate_host(address, bytes, 0); }
API int cuMemAllocHost_v2(void **address, size_t bytes) { return stub_allocate_host(address, bytes, 0); }
API int cuMemFreeHost(void *address) { return stub_free_host(address); }
API int cuMemcpy(void *to, const void *from, size_t bytes) { stub_copy(to, from, bytes); return SUCCESS; }
API int cuMemcpyHtoD_v2(void *to, const void *from, size_t bytes) { stub_copy(to, from, bytes); return SUCCESS; }
API int cuMemcpyDtoH_v2(void *to, const void *from, size_t bytes) { stub_copy(to, from, bytes); return SUCCESS; }
API int cuMemcpyDtoD_v2(void *to, const void *from, size_t bytes) { stub_copy(to, from, bytes); return SUCCESS; }
API int cuMemcpyAsync(void *to, const void *from, size_t bytes, UNUSED void *s) { stub_copy(to, from, bytes); return SUCCESS; }
API int cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t bytes, UNUSED void *s) { stub_copy(to, from, bytes); return SUCCESS; }
API int cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t bytes, UNUSED void *s) { stub_copy(to, from, bytes); return SUCCESS; }
API int cuMemcpyDtoDAsync_v2(void *to, const void *from, size_t bytes, UNUSED void *s) { stub_copy(to, from, bytes); return SUCCESS; }
API int cuMemsetD8_v2(void *to, unsigned char value, size_t n) { stub_fill(to, value, n); return SUCCESS; }
API int cuMemsetD8Async(void *to, unsigned char value, size_t n, UNUSED void *s) { stub_fill(to, value, n); return SUCCESS; }
API int cuMemsetD32Async(void *to, unsigned value, size_t n, UNUSED void *s) { if (!value) stub_fill(to, 0, 4 * n); return SUCCESS; }

API int cuPointerGetAttribute(void *to, int attribute, const void *address) {
    int owner = stub_owner(address);
    if (attribute == 2) *(int *)to = owner >= 0 ? 2 : 1;                   /* kind of memory: device or host */
    else if (attribute == 3 || attribute == 4) *(const void **)to = address; /* its address there and here */
    else if (attribute == 9) *(int *)to = owner >= 0 ? owner : 0;          /* ordinal of the device */
    else if (attribute == 8) *(int *)to = owner == -2;                     /* managed */
    else return INVALID_VALUE;
    return owner == -1 ? INVALID_VALUE : SUCCESS;
}

/* Virtual memory: physical memory counts, address space does not. The device is the fourth int of the properties. */
API int cuMemCreate(unsigned long long *handle, size_t bytes, const int *properties, UNUSED unsigned long long f) { return stub_physical_create(bytes, properties[3], handle); }
API int cuMemRelease(unsigned long long handle) { return stub_physical_release(handle); }
API int cuMemAddressReserve(void **address, size_t bytes, UNUSED size_t a, UNUSED void *w, UNUSED unsigned long long f) { return stub_reserve(address, bytes); }
API int cuMemAddressFree(void *address, size_t bytes) { return stub_unreserve(address, bytes); }
API int cuMemUnmap(void *address, size_t bytes) { stub_discard(address, bytes); return SUCCESS; }
API int cuMemGetAllocationGranularity(size_t *bytes, UNUSED const void *p, UNUSED int f) { *bytes = 2 * MIB; return SUCCESS; }

static int handle_at(void **to) { *to = stub_handle(); return SUCCESS; }
API int cuModuleLoad(void **m) { return handle_at(m); }
API int cuModuleLoadData(void **m) { return handle_at(m); }
API int cuModuleLoadDataEx(void **m) { return handle_at(m); }
API int cuModuleLoadFatBinary(void **m) { return handle_at(m); }
API int cuModuleGetFunction(void **f) { return handle_at(f); }
API int cuModuleGetGlobal_v2(void **address, size_t *bytes) { static char room[65536]; if (address) *address = room; if (bytes) *bytes = sizeof room; return SUCCESS; }
API int cuLibraryLoadData(void **m) { return handle_at(m); }
API int cuLibraryGetKernel(void **f) { return handle_at(f); }
API int cuLibraryGetModule(void **m) { return handle_at(m); }
API int cuKernelGetFunction(void **f) { return handle_at(f); }
API int cuLinkCreate_v2(UNUSED unsigned n, UNUSED void *o, UNUSED void *v, void **state) { return handle_at(state); }
API int cuLinkComplete(UNUSED void *state, void **image, size_t *bytes) { static char room[64]; *image = room; *bytes = sizeof room; return SUCCESS; }
API int cuFuncGetAttribute(int *value, int attribute, UNUSED void *f) { *value = attribute == 0 ? 1024 : attribute == 4 ? 32 : 0; return SUCCESS; }
API int cuKernelGetAttribute(int *value, int attribute, UNUSED void *f, UNUSED int d) { return cuFuncGetAttribute(value, attribute, f); }
API int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, UNUSED void *f, int threads, UNUSED size_t s) { *blocks = stub_threads_on(threads); return SUCCESS; }
API int cuOccupancyMaxActiveClusters(int *clusters) { *clusters = stub_card()->multiprocessors; return SUCCESS; }

API int cuStreamCreate(void **stream, UNUSED unsigned f) { return handle_at(stream); }
API int cuStreamCreateWithPriority(void **stream, UNUSED unsigned f, UNUSED int p) { return handle_at(stream); }
API int cuStreamIsCapturing(struct stream *stream, int *status) { *status = (uintptr_t)stream > 4096 ? stream->capturing : 0; return SUCCESS; }
API int cuStreamGetCtx(UNUSED void *stream, void **context) { return cuCtxGetCurrent(context); }
API int cuEventCreate(void **event, UNUSED unsigned f) { return handle_at(event); }
API int cuEventElapsedTime(float *ms) { *ms = 1; return SUCCESS; }

API int cuGetProcAddress_v2(const char *name, void **function, UNUSED int v, UNUSED unsigned long long f, int *status) {
    static const char *const endings[] = {"_v4", "_v3", "_v2", ""};
    char full[128];
    *function = NULL;
    for (int i = 0; i < 4 && !*function; i++) {
        snprintf(full, sizeof full, "%s%s", name, endings[i]);
        *function = dlsym(RTLD_DEFAULT, full);
    }
    if (status) *status = *function ? 0 : 1;
    return *function ? SUCCESS : NOT_FOUND;
}
API int cuGetProcAddress(const char *name, void **function, int v, unsigned long long f) { return cuGetProcAddress_v2(name, function, v, f, NULL); }
