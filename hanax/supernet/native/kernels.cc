// The kernels as XLA custom calls. They run on XLA's own thread pool; buffers are in layout C H W N.

#include "batch_norm.h"
#include "depthwise.h"
#include "mbconv.h"
#include "pointwise.h"
#include "threads.h"

namespace {

namespace ffi = xla::ffi;
using hanax::for_each;

using F32x1 = ffi::Buffer<ffi::F32, 1>;
using F32x2 = ffi::Buffer<ffi::F32, 2>;
using F32x3 = ffi::Buffer<ffi::F32, 3>;
using F32x4 = ffi::Buffer<ffi::F32, 4>;
using Size = ffi::Buffer<ffi::S32, 0>;

constexpr int64_t kTaskFloats = 20000;  // results worth handing a task to another thread for

int64_t grain(int64_t floats_each) { return std::max<int64_t>(1, kTaskFloats / std::max<int64_t>(1, floats_each)); }

// ---- depthwise -------------------------------------------------------------------------------------------------------

ffi::Error check(const hanax::depthwise::Problem& p) {
  if (p.stride < 1 || p.stride > 2) return ffi::Error::InvalidArgument("stride must be 1 or 2");
  if (p.largest > hanax::depthwise::kMaxSize || p.size < 1 || p.size > p.largest || p.size % 2 == 0)
    return ffi::Error::InvalidArgument("the kernel size must be odd, at most 7 and at most that of the weights");
  return ffi::Error::Success();
}

template <typename Dimensions>
hanax::depthwise::Problem depthwise_problem(Dimensions x, Dimensions y, int64_t largest, int64_t size, int64_t stride) {
  return {x[0], x[1], x[2], x[3], y[1], y[2], largest, size, stride};
}

ffi::Error DepthwiseForward(ffi::ThreadPool pool, F32x4 x, F32x3 weights, Size size, ffi::Result<F32x4> y,
                            int64_t stride) {
  const auto p = depthwise_problem(x.dimensions(), y->dimensions(), weights.dimensions()[2], *size.typed_data(), stride);
  if (ffi::Error error = check(p); error.failure()) return error;
  for_each(pool, p.channels, grain(p.out_plane()), [&](int64_t channel) {
    hanax::depthwise::forward_channel(p, channel, x.typed_data(), weights.typed_data(), y->typed_data());
  });
  return ffi::Error::Success();
}

ffi::Error DepthwiseBackward(ffi::ThreadPool pool, F32x4 x, F32x3 weights, Size size, F32x4 dy, ffi::Result<F32x4> dx,
                             ffi::Result<F32x3> dweights, int64_t stride) {
  const auto p = depthwise_problem(x.dimensions(), dy.dimensions(), weights.dimensions()[2], *size.typed_data(), stride);
  if (ffi::Error error = check(p); error.failure()) return error;
  for_each(pool, p.channels, grain(p.plane()), [&](int64_t channel) {
    hanax::depthwise::backward_channel(p, channel, x.typed_data(), weights.typed_data(), dy.typed_data(),
                                       dx->typed_data(), dweights->typed_data());
  });
  return ffi::Error::Success();
}

// ---- pointwise -------------------------------------------------------------------------------------------------------

int64_t columns_of(const F32x4& x) { return x.dimensions()[1] * x.dimensions()[2] * x.dimensions()[3]; }

ffi::Error PointwiseForward(ffi::ThreadPool pool, F32x4 x, F32x2 w, ffi::Result<F32x4> y) {
  hanax::pointwise::forward(pool, x.typed_data(), w.typed_data(), y->typed_data(), w.dimensions()[1], w.dimensions()[0],
                            columns_of(x));
  return ffi::Error::Success();
}

ffi::Error PointwiseBackward(ffi::ThreadPool pool, F32x4 x, F32x2 w, F32x4 dy, ffi::Result<F32x4> dx,
                             ffi::Result<F32x2> dw) {
  hanax::pointwise::backward(pool, x.typed_data(), w.typed_data(), dy.typed_data(), dx->typed_data(), dw->typed_data(),
                             w.dimensions()[1], w.dimensions()[0], columns_of(x));
  return ffi::Error::Success();
}

// ---- batch norm and activation -----------------------------------------------------------------------------------------

using hanax::batch_norm::Activation;

template <typename Call>
void with_activation(int64_t activation, const Call& call) {
  switch (activation) {
    case hanax::batch_norm::kRelu: return call(std::integral_constant<Activation, hanax::batch_norm::kRelu>());
    case hanax::batch_norm::kHardSwish: return call(std::integral_constant<Activation, hanax::batch_norm::kHardSwish>());
    default: return call(std::integral_constant<Activation, hanax::batch_norm::kNone>());
  }
}

ffi::Error BatchNormForward(ffi::ThreadPool pool, F32x4 x, F32x1 scale, F32x1 offset, ffi::Result<F32x4> y,
                            ffi::Result<F32x1> mean, ffi::Result<F32x1> variance, int64_t activation,
                            int64_t n_statistics, float epsilon) {
  const auto shape = x.dimensions();
  const int64_t positions = shape[1] * shape[2], images = shape[3], plane = positions * images;
  for_each(pool, shape[0], grain(plane), [&](int64_t c) {
    const float* values = x.typed_data() + c * plane;
    const auto found = hanax::batch_norm::statistics(values, positions, images, n_statistics);
    mean->typed_data()[c] = found.mean;
    variance->typed_data()[c] = found.variance;
    const float factor = scale.typed_data()[c] / __builtin_sqrtf(found.variance + epsilon);
    with_activation(activation, [&](auto kind) {
      hanax::batch_norm::apply<kind>(values, plane, found.mean, factor, offset.typed_data()[c],
                                     y->typed_data() + c * plane);
    });
  });
  return ffi::Error::Success();
}

ffi::Error BatchNormBackward(ffi::ThreadPool pool, F32x4 x, F32x1 scale, F32x1 offset, F32x1 mean, F32x1 variance,
                             F32x4 dy, ffi::Result<F32x4> dx, ffi::Result<F32x1> dscale, ffi::Result<F32x1> doffset,
                             int64_t activation, float epsilon) {
  const auto shape = x.dimensions();
  const int64_t plane = shape[1] * shape[2] * shape[3];
  for_each(pool, shape[0], grain(plane), [&](int64_t c) {
    with_activation(activation, [&](auto kind) {
      hanax::batch_norm::gradients<kind>(x.typed_data() + c * plane, dy.typed_data() + c * plane, plane,
                                         {mean.typed_data()[c], variance.typed_data()[c]}, epsilon,
                                         scale.typed_data()[c], offset.typed_data()[c], dx->typed_data() + c * plane,
                                         dscale->typed_data() + c, doffset->typed_data() + c);
    });
  });
  return ffi::Error::Success();
}

// ---- a whole block -----------------------------------------------------------------------------------------------------

// The operands that all three calls share. Norms: rows of scale, offset, mean, variance. A part that the block lacks has no
// rows, and no statistics.
struct MbconvOperands {
  F32x4 x;
  F32x2 expand, expand_norm;
  F32x3 kernels;
  Size size;
  F32x2 depthwise_norm, se_reduce;
  F32x1 se_reduce_bias;
  F32x2 se_expand;
  F32x1 se_expand_bias;
  F32x2 project, project_norm;

  hanax::mbconv::Block block(int64_t stride, int64_t has_residual, float epsilon) const {
    const auto in = x.dimensions();
    const int64_t height = (in[1] + stride - 1) / stride, width = (in[2] + stride - 1) / stride;
    const hanax::depthwise::Problem problem = {kernels.dimensions()[0], in[1], in[2], in[3],
                                               height, width, kernels.dimensions()[2], *size.typed_data(), stride};
    return {problem,
            in[0],
            project.dimensions()[0],
            se_reduce.dimensions()[0],
            expand.dimensions()[0] > 0,
            has_residual != 0,
            epsilon,
            expand.typed_data(),
            kernels.typed_data(),
            se_reduce.typed_data(),
            se_reduce_bias.typed_data(),
            se_expand.typed_data(),
            se_expand_bias.typed_data(),
            project.typed_data()};
  }
  // The norms, whose statistics go to rows of mean and variance.
  hanax::mbconv::Norms norms(float* expand_found, float* depthwise_found, float* project_found) const {
    const auto norm = [](const F32x2& rows, float* found) {
      const int64_t channels = rows.dimensions()[1];
      return hanax::mbconv::Norm{rows.typed_data(), channels, found, found + channels};
    };
    return {norm(expand_norm, expand_found), norm(depthwise_norm, depthwise_found), norm(project_norm, project_found)};
  }
};

ffi::Error check_kept(const hanax::mbconv::Block& block, int64_t moments, int64_t depthwise, int64_t projected) {
  const hanax::mbconv::KeptFloats expected(block);
  if (moments != expected.moments || depthwise != expected.depthwise || projected != expected.projected)
    return ffi::Error::InvalidArgument("what is kept for the way back has another size than the kernel writes");
  return ffi::Error::Success();
}

ffi::Error MbconvEvaluate(ffi::ThreadPool pool, F32x4 x, F32x2 expand, F32x2 expand_norm, F32x3 kernels, Size size,
                          F32x2 depthwise_norm, F32x2 se_reduce, F32x1 se_reduce_bias, F32x2 se_expand,
                          F32x1 se_expand_bias, F32x2 project, F32x2 project_norm, ffi::Result<F32x4> y,
                          ffi::Result<F32x2> expand_found, ffi::Result<F32x2> depthwise_found,
                          ffi::Result<F32x2> project_found, int64_t stride, int64_t activation, int64_t has_residual,
                          float epsilon, int64_t n_statistics) {
  const MbconvOperands operands = {x, expand, expand_norm, kernels, size, depthwise_norm, se_reduce, se_reduce_bias,
                                   se_expand, se_expand_bias, project, project_norm};
  const auto block = operands.block(stride, has_residual, epsilon);
  if (ffi::Error error = check(block.problem); error.failure()) return error;
  with_activation(activation, [&](auto kind) {
    hanax::mbconv::evaluate<kind>(
        pool, block, x.typed_data(), y->typed_data(), n_statistics,
        operands.norms(expand_found->typed_data(), depthwise_found->typed_data(), project_found->typed_data()));
  });
  return ffi::Error::Success();
}

ffi::Error MbconvForward(ffi::ThreadPool pool, F32x4 x, F32x2 expand, F32x2 expand_norm, F32x3 kernels, Size size,
                         F32x2 depthwise_norm, F32x2 se_reduce, F32x1 se_reduce_bias, F32x2 se_expand,
                         F32x1 se_expand_bias, F32x2 project, F32x2 project_norm, ffi::Result<F32x4> y,
                         ffi::Result<F32x2> expand_found, ffi::Result<F32x2> depthwise_found,
                         ffi::Result<F32x2> project_found, ffi::Result<F32x1> moments, ffi::Result<F32x1> kept,
                         ffi::Result<F32x1> projected, int64_t stride, int64_t activation, int64_t has_residual,
                         float epsilon) {
  const MbconvOperands operands = {x, expand, expand_norm, kernels, size, depthwise_norm, se_reduce, se_reduce_bias,
                                   se_expand, se_expand_bias, project, project_norm};
  const auto block = operands.block(stride, has_residual, epsilon);
  if (ffi::Error error = check(block.problem); error.failure()) return error;
  if (ffi::Error error =
          check_kept(block, moments->element_count(), kept->element_count(), projected->element_count());
      error.failure())
    return error;
  with_activation(activation, [&](auto kind) {
    hanax::mbconv::forward<kind>(
        pool, block, x.typed_data(), y->typed_data(),
        operands.norms(expand_found->typed_data(), depthwise_found->typed_data(), project_found->typed_data()),
        {moments->typed_data(), kept->typed_data(), projected->typed_data()});
  });
  return ffi::Error::Success();
}

ffi::Error MbconvBackward(ffi::ThreadPool pool, F32x4 x, F32x2 expand, F32x2 expand_norm, F32x3 kernels, Size size,
                          F32x2 depthwise_norm, F32x2 se_reduce, F32x1 se_reduce_bias, F32x2 se_expand,
                          F32x1 se_expand_bias, F32x2 project, F32x2 project_norm, F32x1 moments, F32x1 kept,
                          F32x1 projected, F32x4 dy, ffi::Result<F32x4> dx, ffi::Result<F32x2> dexpand,
                          ffi::Result<F32x2> dexpand_norm, ffi::Result<F32x3> dkernels,
                          ffi::Result<F32x2> ddepthwise_norm, ffi::Result<F32x2> dse_reduce,
                          ffi::Result<F32x1> dse_reduce_bias, ffi::Result<F32x2> dse_expand,
                          ffi::Result<F32x1> dse_expand_bias, ffi::Result<F32x2> dproject,
                          ffi::Result<F32x2> dproject_norm, int64_t stride, int64_t activation, int64_t has_residual,
                          float epsilon) {
  const MbconvOperands operands = {x, expand, expand_norm, kernels, size, depthwise_norm, se_reduce, se_reduce_bias,
                                   se_expand, se_expand_bias, project, project_norm};
  const auto block = operands.block(stride, has_residual, epsilon);
  if (ffi::Error error = check(block.problem); error.failure()) return error;
  if (ffi::Error error = check_kept(block, moments.element_count(), kept.element_count(), projected.element_count());
      error.failure())
    return error;
  std::vector<float> expand_found(2 * expand_norm.dimensions()[1]), depthwise_found(2 * block.mid()),
      project_found(2 * block.out);
  const hanax::mbconv::Gradients gradients = {
      dx->typed_data(),         dexpand->typed_data(),         dexpand_norm->typed_data(), dkernels->typed_data(),
      ddepthwise_norm->typed_data(), dse_reduce->typed_data(), dse_reduce_bias->typed_data(), dse_expand->typed_data(),
      dse_expand_bias->typed_data(), dproject->typed_data(),   dproject_norm->typed_data()};
  with_activation(activation, [&](auto kind) {
    hanax::mbconv::backward<kind>(
        pool, block, x.typed_data(), dy.typed_data(),
        operands.norms(expand_found.data(), depthwise_found.data(), project_found.data()),
        {const_cast<float*>(moments.typed_data()), const_cast<float*>(kept.typed_data()),
         const_cast<float*>(projected.typed_data())},
        gradients);
  });
  return ffi::Error::Success();
}

}  // namespace

auto mbconv_binding() {  // the pool and what MbconvOperands holds
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<F32x4>()
      .Arg<F32x2>()
      .Arg<F32x2>()
      .Arg<F32x3>()
      .Arg<Size>()
      .Arg<F32x2>()
      .Arg<F32x2>()
      .Arg<F32x1>()
      .Arg<F32x2>()
      .Arg<F32x1>()
      .Arg<F32x2>()
      .Arg<F32x2>();
}

template <typename Binding>
auto with_mbconv_outputs(Binding binding) {  // the output, and the statistics of the three norms
  return std::move(binding)
      .template Ret<F32x4>()
      .template Ret<F32x2>()
      .template Ret<F32x2>()
      .template Ret<F32x2>();
}

template <typename Binding>
auto with_mbconv_settings(Binding binding) {
  return std::move(binding)
      .template Attr<int64_t>("stride")
      .template Attr<int64_t>("activation")
      .template Attr<int64_t>("has_residual")
      .template Attr<float>("epsilon");
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(HanaxMbconvEvaluate, MbconvEvaluate,
                              with_mbconv_settings(with_mbconv_outputs(mbconv_binding()))
                                  .Attr<int64_t>("n_statistics"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(HanaxMbconvForward, MbconvForward,
                              with_mbconv_settings(with_mbconv_outputs(mbconv_binding())
                                                       .Ret<F32x1>()
                                                       .Ret<F32x1>()
                                                       .Ret<F32x1>()));

XLA_FFI_DEFINE_HANDLER_SYMBOL(HanaxMbconvBackward, MbconvBackward,
                              with_mbconv_settings(mbconv_binding()
                                                       .Arg<F32x1>()
                                                       .Arg<F32x1>()
                                                       .Arg<F32x1>()
                                                       .Arg<F32x4>()
                                                       .Ret<F32x4>()
                                                       .Ret<F32x2>()
                                                       .Ret<F32x2>()
                                                       .Ret<F32x3>()
                                                       .Ret<F32x2>()
                                                       .Ret<F32x2>()
                                                       .Ret<F32x1>()
                                                       .Ret<F32x2>()
                                                       .Ret<F32x1>()
                                                       .Ret<F32x2>()
                                                       .Ret<F32x2>()));

XLA_FFI_DEFINE_HANDLER_SYMBOL(HanaxDepthwiseForward, DepthwiseForward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<F32x4>()
                                  .Arg<F32x3>()
                                  .Arg<Size>()
                                  .Ret<F32x4>()
                                  .Attr<int64_t>("stride"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(HanaxDepthwiseBackward, DepthwiseBackward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<F32x4>()
                                  .Arg<F32x3>()
                                  .Arg<Size>()
                                  .Arg<F32x4>()
                                  .Ret<F32x4>()
                                  .Ret<F32x3>()
                                  .Attr<int64_t>("stride"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(HanaxPointwiseForward, PointwiseForward,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<F32x4>().Arg<F32x2>().Ret<F32x4>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    HanaxPointwiseBackward, PointwiseBackward,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<F32x4>().Arg<F32x2>().Arg<F32x4>().Ret<F32x4>().Ret<F32x2>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(HanaxBatchNormForward, BatchNormForward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<F32x4>()
                                  .Arg<F32x1>()
                                  .Arg<F32x1>()
                                  .Ret<F32x4>()
                                  .Ret<F32x1>()
                                  .Ret<F32x1>()
                                  .Attr<int64_t>("activation")
                                  .Attr<int64_t>("n_statistics")
                                  .Attr<float>("epsilon"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(HanaxBatchNormBackward, BatchNormBackward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<F32x4>()
                                  .Arg<F32x1>()
                                  .Arg<F32x1>()
                                  .Arg<F32x1>()
                                  .Arg<F32x1>()
                                  .Arg<F32x4>()
                                  .Ret<F32x4>()
                                  .Ret<F32x1>()
                                  .Ret<F32x1>()
                                  .Attr<int64_t>("activation")
                                  .Attr<float>("epsilon"));
