// Just enough of CUDA to run kernels_cuda.cu on a CPU, one thread after the other: the tests have no GPU. Half types
// hold a float, which tells whether a kernel indexes right, not how it rounds.
#pragma once
#include <cmath>
#include <cstdint>

#define __device__
#define __global__

struct Dim {
  unsigned x;
};
inline Dim gridDim, blockDim, blockIdx, threadIdx;

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "an error"; }

struct __half {
  float value;
};
struct __nv_bfloat16 {
  float value;
};
inline float __half2float(__half v) { return v.value; }
inline float __bfloat162float(__nv_bfloat16 v) { return v.value; }
inline __half __float2half(float v) { return {v}; }
inline __nv_bfloat16 __float2bfloat16(float v) { return {v}; }

template <typename F>
void emulate(int blocks, int threads, const F& kernel) {
  gridDim.x = unsigned(blocks), blockDim.x = unsigned(threads);
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
    for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x) kernel();
  }
}
