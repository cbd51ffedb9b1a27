// C names for what the test calls. It prepends kernels_cuda.cu, with its one launch turned into a loop.
using namespace stylefusion;

extern "C" const char* run_upfirdn2d(const float* x, float* y, const int64_t* size, int last, const float* taps,
                                     const int64_t* fir, double fir_gain, const float* scale, const float* bias,
                                     const float* noise, int per_sample, const double* act) {
  const Image in{size[0], size[1], size[2], size[3], last != 0}, out{size[0], size[1], size[4], size[5], last != 0};
  const Fir f{taps, fir[0], fir[1], fir[2], fir[3], fir[4], fir_gain};
  const Epilogue e{scale, bias, noise, per_sample != 0, act[0], act[1], act[2]};
  return upfirdn2d(Dtype::f32, x, y, in, out, f, act[3] != 0 ? &e : nullptr, nullptr);
}

extern "C" const char* run_bias_act(const float* x, float* y, const int64_t* size, int last, const float* scale,
                                    const float* bias, const float* noise, int per_sample, const double* act) {
  const Image image{size[0], size[1], size[2], size[3], last != 0};
  return bias_act(Dtype::f32, x, y, image, Epilogue{scale, bias, noise, per_sample != 0, act[0], act[1], act[2]},
                  nullptr);
}

extern "C" const char* run_act_grad(const float* grad, const float* y, float* out, int64_t count, const double* act) {
  return act_grad(Dtype::f32, grad, y, out, count, Epilogue{nullptr, nullptr, nullptr, false, act[0], act[1], act[2]},
                  nullptr);
}
