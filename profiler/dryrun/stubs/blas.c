/* cuBLAS and cuBLASLt: handles, versions, and one algorithm that needs no workspace. */
#include "stub.h"

static int handle_at(void **to) { *to = stub_handle(); return SUCCESS; }
#if defined LIB_cublas
API int cublasCreate_v2(void **handle) { return handle_at(handle); }
API int cublasGetMathMode(UNUSED void *h, int *mode) { *mode = 0; return SUCCESS; }
API int cublasGetPointerMode_v2(UNUSED void *h, int *mode) { *mode = 0; return SUCCESS; }
API int cublasGetStream_v2(UNUSED void *h, void **stream) { *stream = NULL; return SUCCESS; }
API int cublasGetProperty(int which, int *value) { *value = which ? 1 : STUB_CUDA / 1000; return SUCCESS; }
API int cublasGetVersion_v2(UNUSED void *h, int *version) { *version = STUB_CUDA / 1000 * 10000 + 100; return SUCCESS; }
API const char *cublasGetStatusString(UNUSED int s) { return "status of a stub"; }
API const char *cublasGetStatusName(UNUSED int s) { return "status of a stub"; }
#else
API int cublasLtCreate(void **handle) { return handle_at(handle); }
API size_t cublasLtGetVersion(void) { return STUB_CUDA / 1000 * 10000 + 100; }
API int cublasLtMatmulDescCreate(void **made) { return handle_at(made); }
API int cublasLtMatrixLayoutCreate(void **made) { return handle_at(made); }
API int cublasLtMatmulPreferenceCreate(void **made) { return handle_at(made); }
API int cublasLtMatrixTransformDescCreate(void **made) { return handle_at(made); }
API int cublasLtMatmulAlgoGetHeuristic(UNUSED void *h, UNUSED void *o, UNUSED void *a, UNUSED void *b, UNUSED void *c, UNUSED void *d, UNUSED void *p, UNUSED int asked, void *results, int *found) {
    memset(results, 0, 96); /* one result, its status success, its workspace empty */
    *found = 1;
    return SUCCESS;
}
#endif
