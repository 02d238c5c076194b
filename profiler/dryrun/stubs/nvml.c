/* NVML, as torch, pynvml, accelerate and trackers ask it. A device's handle is its index plus one. */
#include "stub.h"
#include <unistd.h>

static int index_of(void *device) { return (int)(uintptr_t)device - 1; }

API int nvmlInit_v2(void) { return SUCCESS; }
API int nvmlInit(void) { return SUCCESS; }
API int nvmlInitWithFlags(UNUSED unsigned f) { return SUCCESS; }
API int nvmlShutdown(void) { return SUCCESS; }
API const char *nvmlErrorString(int e) { return e ? "Not Supported" : "Success"; }
API int nvmlSystemGetDriverVersion(char *to, unsigned length) { snprintf(to, length, "580.00.stub"); return SUCCESS; }
API int nvmlSystemGetNVMLVersion(char *to, unsigned length) { snprintf(to, length, "13.580.00.stub"); return SUCCESS; }
API int nvmlSystemGetCudaDriverVersion(int *version) { *version = STUB_CUDA; return SUCCESS; }
API int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = STUB_CUDA; return SUCCESS; }
API int nvmlDeviceGetCount_v2(unsigned *count) { *count = (unsigned)stub_devices(); return SUCCESS; }
API int nvmlDeviceGetCount(unsigned *count) { return nvmlDeviceGetCount_v2(count); }
API int nvmlDeviceGetHandleByIndex_v2(unsigned which, void **device) {
    if (which >= (unsigned)stub_devices()) return 2;
    *device = (void *)(uintptr_t)(which + 1);
    return SUCCESS;
}
API int nvmlDeviceGetHandleByIndex(unsigned which, void **device) { return nvmlDeviceGetHandleByIndex_v2(which, device); }
API int nvmlDeviceGetHandleByUUID(const char *id, void **device) {
    const char *last = strrchr(id, '-');
    return nvmlDeviceGetHandleByIndex_v2(last ? (unsigned)atoi(last + 1) : 0, device);
}
API int nvmlDeviceGetHandleByPciBusId_v2(UNUSED const char *id, void **device) { return nvmlDeviceGetHandleByIndex_v2(0, device); }
API int nvmlDeviceGetIndex(void *device, unsigned *which) { *which = (unsigned)index_of(device); return SUCCESS; }
API int nvmlDeviceGetName(UNUSED void *device, char *to, unsigned length) { snprintf(to, length, "%s", stub_card()->name); return SUCCESS; }
API int nvmlDeviceGetUUID(void *device, char *to, unsigned length) { snprintf(to, length, "GPU-00000000-0000-0000-0000-%012d", index_of(device)); return SUCCESS; }
API int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *to) {
    size_t free_bytes, total;
    stub_memory(index_of(device), &free_bytes, &total);
    to[0] = total, to[1] = free_bytes, to[2] = total - free_bytes;
    return SUCCESS;
}
API int nvmlDeviceGetMemoryInfo_v2(void *device, unsigned long long *to) { /* version, total, reserved, free, used */
    size_t free_bytes, total;
    stub_memory(index_of(device), &free_bytes, &total);
    to[1] = total, to[2] = 0, to[3] = free_bytes, to[4] = total - free_bytes;
    return SUCCESS;
}
API int nvmlDeviceGetCudaComputeCapability(UNUSED void *device, int *major, int *minor) { *major = stub_card()->major; *minor = stub_card()->minor; return SUCCESS; }
API int nvmlDeviceGetUtilizationRates(UNUSED void *device, unsigned *to) { to[0] = to[1] = 0; return SUCCESS; }
API int nvmlDeviceGetTemperature(UNUSED void *device, UNUSED int kind, unsigned *to) { *to = 40; return SUCCESS; }
API int nvmlDeviceGetPowerUsage(UNUSED void *device, unsigned *to) { *to = 50000; return SUCCESS; }
API int nvmlDeviceGetEnforcedPowerLimit(UNUSED void *device, unsigned *to) { *to = 400000; return SUCCESS; }
API int nvmlDeviceGetClockInfo(UNUSED void *device, UNUSED int kind, unsigned *to) { *to = 1500; return SUCCESS; }
API int nvmlDeviceGetMinorNumber(void *device, unsigned *to) { *to = (unsigned)index_of(device); return SUCCESS; }

/* One process holds the device: this one. An entry begins with its id and its bytes; version 2 adds two instances. */
static int this_process(void *device, unsigned *count, void *to, int with_instances) {
    size_t free_bytes, total;
    unsigned room = *count;
    *count = 1;
    if (!room || !to) return 7; /* insufficient size */
    stub_memory(index_of(device), &free_bytes, &total);
    *(unsigned *)to = (unsigned)getpid();
    ((unsigned long long *)to)[1] = total - free_bytes;
    if (with_instances) memset((char *)to + 16, 255, 8);
    return SUCCESS;
}
static int none(UNUSED void *device, unsigned *count, UNUSED void *to) { *count = 0; return SUCCESS; }
API int nvmlDeviceGetComputeRunningProcesses(void *d, unsigned *n, void *to) { return this_process(d, n, to, 0); }
API int nvmlDeviceGetComputeRunningProcesses_v2(void *d, unsigned *n, void *to) { return this_process(d, n, to, 1); }
API int nvmlDeviceGetComputeRunningProcesses_v3(void *d, unsigned *n, void *to) { return this_process(d, n, to, 1); }
API int nvmlDeviceGetGraphicsRunningProcesses(void *d, unsigned *n, void *to) { return none(d, n, to); }
API int nvmlDeviceGetGraphicsRunningProcesses_v3(void *d, unsigned *n, void *to) { return none(d, n, to); }
API int nvmlDeviceGetCpuAffinity(UNUSED void *device, unsigned words, unsigned long *to) { memset(to, 255, words * sizeof *to); return SUCCESS; }
API int nvmlDeviceGetNvLinkState(UNUSED void *device, UNUSED unsigned link, UNUSED int *active) { return 3; /* not supported */ }
API int nvmlDeviceGetP2PStatus(UNUSED void *a, UNUSED void *b, UNUSED int k, int *status) { *status = 1; return SUCCESS; }
