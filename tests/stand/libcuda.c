// A CUDA driver without a GPU: its calls succeed and do nothing, but tensor maps must meet the real driver's rules.
// Each launch and each tensor map is a line in the file that STUB_LOG names.
#include "cuda.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static FILE *out(void) {
  static FILE *file = 0;
  if (!file) {
    const char *path = getenv("STUB_LOG");
    file = path ? fopen(path, "a") : stderr;
    setvbuf(file, 0, _IOLBF, 0);
  }
  return file;
}

CUresult cuInit(unsigned flags) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *version) { *version = 13000; return CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int *count) { *count = 1; return CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext *context) { *context = (CUcontext)1; return CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext context) { return CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice *device) { *device = 0; return CUDA_SUCCESS; }
CUresult cuCtxGetLimit(size_t *value, CUlimit limit) { *value = 0; return CUDA_SUCCESS; }
CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int index) { *device = 0; return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) { *context = (CUcontext)1; return CUDA_SUCCESS; }
CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute a, int value) { return CUDA_SUCCESS; }
CUresult cuFuncSetCacheConfig(CUfunction f, CUfunc_cache config) { return CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult result, const char **text) { *text = "refused by the driver of tests/stand"; return CUDA_SUCCESS; }
CUresult cuModuleLoadData(CUmodule *module, const void *image) { *module = (CUmodule)1; return CUDA_SUCCESS; }
CUresult cuModuleUnload(CUmodule module) { return CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction *f, CUmodule module, const char *name) { *f = (CUfunction)strdup(name); return CUDA_SUCCESS; }
CUresult cuOccupancyMaxActiveClusters(int *count, CUfunction f, const CUlaunchConfig *config) { *count = 1; return CUDA_SUCCESS; }
CUresult cuPointerGetAttribute(void *value, CUpointer_attribute a, CUdeviceptr p) { *(CUdeviceptr *)value = p; return CUDA_SUCCESS; }

CUresult cuPointerGetAttributes(unsigned count, CUpointer_attribute *asked, void **values, CUdeviceptr p) {
  for (unsigned i = 0; i < count; i++) {
    if (asked[i] == CU_POINTER_ATTRIBUTE_DEVICE_POINTER) *(CUdeviceptr *)values[i] = p;
    else *(unsigned *)values[i] = asked[i] == CU_POINTER_ATTRIBUTE_MEMORY_TYPE ? CU_MEMORYTYPE_DEVICE : 0;
  }
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) { // of an H100
  switch (attribute) {
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = 232448; break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = 233472; break;
  case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
  case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 132; break;
  case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
  default: *value = 1024;
  }
  return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction f) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}

// The rules of cuTensorMapEncodeTiled in CUDA's driver API reference.
CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                const cuuint64_t *size, const cuuint64_t *stride, const cuuint32_t *box,
                                const cuuint32_t *step, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  static const int bytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
  const int inner = box[0] * bytes[type];
  const int span = swizzle == CU_TENSOR_MAP_SWIZZLE_128B ? 128 : swizzle == CU_TENSOR_MAP_SWIZZLE_64B ? 64
                   : swizzle == CU_TENSOR_MAP_SWIZZLE_32B ? 32 : 0;
  const char *wrong = 0;
  if ((size_t)address % 16) wrong = "the address is not a multiple of 16";
  if (rank < 1 || rank > 5) wrong = "the rank is not 1 to 5";
  for (unsigned i = 0; i < rank; i++) {
    if (size[i] == 0 || size[i] > (1ull << 32)) wrong = "a size is not 1 to 2^32";
    if (box[i] == 0 || box[i] > 256) wrong = "a side of the box is not 1 to 256";
    if (step[i] == 0 || step[i] > 8) wrong = "an element stride is not 1 to 8";
    if (i + 1 < rank && (stride[i] % 16 || stride[i] >= (1ull << 40))) wrong = "a stride is not a multiple of 16";
  }
  if (inner % 16) wrong = "the box's inner side is not a multiple of 16 bytes";
  if (span && inner > span) wrong = "the box's inner side exceeds the swizzle";
  fprintf(out(), wrong ? "map refused: %s\n" : "map%s\n", wrong ? wrong : "");
  return wrong ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction f, void **parameters, void **extra) {
  fprintf(out(), "launch %s %u\n", (char *)f, config->gridDimX);
  return CUDA_SUCCESS;
}
