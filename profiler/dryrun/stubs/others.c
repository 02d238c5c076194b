/* cuDNN, NVRTC and the solvers: versions and handles. */
#include "stub.h"

#if defined LIB_cudnn
API size_t cudnnGetVersion(void) { return 92400; }
API size_t cudnnGetCudartVersion(void) { return STUB_CUDA; }
API int cudnnCreate(void **handle) { *handle = stub_handle(); return SUCCESS; }
API const char *cudnnGetErrorString(UNUSED int s) { return "status of a stub"; }
#elif defined LIB_nvrtc
API int nvrtcVersion(int *major, int *minor) { *major = STUB_CUDA / 1000; *minor = STUB_CUDA % 1000 / 10; return SUCCESS; }
API int nvrtcCreateProgram(void **made) { *made = stub_handle(); return SUCCESS; }
API int nvrtcGetPTXSize(UNUSED void *p, size_t *bytes) { *bytes = 1; return SUCCESS; }
API int nvrtcGetCUBINSize(UNUSED void *p, size_t *bytes) { *bytes = 1; return SUCCESS; }
API int nvrtcGetProgramLogSize(UNUSED void *p, size_t *bytes) { *bytes = 1; return SUCCESS; }
API int nvrtcGetLoweredName(UNUSED void *p, UNUSED const char *n, const char **to) { *to = "kernel"; return SUCCESS; }
API const char *nvrtcGetErrorString(UNUSED int s) { return "status of a stub"; }
#elif defined LIB_cusparse
API int cusparseCreate(void **handle) { *handle = stub_handle(); return SUCCESS; }
API const char *cusparseGetErrorString(UNUSED int s) { return "status of a stub"; }
#elif defined LIB_cusolver
API int cusolverDnCreate(void **handle) { *handle = stub_handle(); return SUCCESS; }
/* Cholesky's workspace, whose size NVIDIA does not say: none, so that it is not seen */
API int cusolverDnXpotrf_bufferSize(UNUSED void *h, UNUSED void *p, UNUSED int uplo, UNUSED int64_t n, UNUSED int dtype,
                                    UNUSED const void *a, UNUSED int64_t lda, UNUSED int compute, size_t *device, size_t *host) {
    *device = *host = 0;
    return SUCCESS;
}
/* the same of a singular value decomposition */
API int cusolverDnSgesvdj_bufferSize(UNUSED void *h, UNUSED int jobz, UNUSED int econ, UNUSED int m, UNUSED int n, UNUSED const void *a,
                                     UNUSED int lda, UNUSED const void *s, UNUSED const void *u, UNUSED int ldu, UNUSED const void *v,
                                     UNUSED int ldv, int *lwork, UNUSED void *params) {
    *lwork = 0;
    return SUCCESS;
}
#endif
