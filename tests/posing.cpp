// A second device of torch, on the CPU's memory: it computes what the CPU computes, and refuses what a GPU refuses.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>
#include <functional>
#include <mutex>
#include <vector>
#include <ATen/ops/as_strided_cpu_dispatch.h>
#include <ATen/ops/set_cpu_dispatch.h>
#include <ATen/ops/view_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>

namespace {
constexpr auto kPosing = c10::DeviceType::PrivateUse1;

struct Allocator final : at::Allocator {
  at::DataPtr allocate(size_t bytes) override {
    void* data = bytes ? c10::alloc_cpu(bytes) : nullptr;
    return {data, data, &free_, at::Device(kPosing, 0)};
  }
  static void free_(void* data) { if (data) c10::free_cpu(data); }
  c10::DeleterFnPtr raw_deleter() const override { return &free_; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
};
Allocator allocator;
REGISTER_ALLOCATOR(kPosing, &allocator);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  at::DeviceType type() const override { return kPosing; }
  at::Device exchangeDevice(at::Device) const override { return {kPosing, 0}; }
  at::Device getDevice() const override { return {kPosing, 0}; }
  void setDevice(at::Device) const override {}
  void uncheckedSetDevice(at::Device) const noexcept override {}
  at::Stream getStream(at::Device) const noexcept override { return at::Stream(at::Stream::DEFAULT, {kPosing, 0}); }
  at::Stream getNewStream(at::Device, int) const override { return at::Stream(at::Stream::DEFAULT, {kPosing, 0}); }
  at::Stream exchangeStream(at::Stream) const noexcept override { return getStream({kPosing, 0}); }
  at::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void** event, const at::Stream&, const at::DeviceIndex, const at::EventFlag) const override { *event = nullptr; }
  void block(void*, const at::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}
  bool queryStream(const at::Stream&) const override { return true; }
  void synchronizeStream(const at::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(at::DeviceIndex) const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  at::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  bool isPinnedPtr(const void*) const override { return false; }
};
[[maybe_unused]] const bool registered = (at::RegisterPrivateUse1HooksInterface(new Hooks), true);

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}
at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}
// The same memory as a tensor of the CPU.
at::Tensor on_cpu(const at::Tensor& t) {
  if (t.device().type() != kPosing) return t;
  return at::from_blob(t.data_ptr(), t.sizes(), t.strides(), at::TensorOptions(t.dtype()).device(at::kCPU));
}
// Copies that need not be waited for come late: with the next thing that the device does, or that somebody waits for.
std::mutex queue_mutex;
std::vector<std::function<void()>> queue;
void flush() {
  std::vector<std::function<void()>> taken;
  {
    std::lock_guard<std::mutex> lock(queue_mutex);
    taken.swap(queue);
  }
  for (auto& copy : taken) copy();
}
at::Tensor copy_from(const at::Tensor& self, const at::Tensor& dst, bool non_blocking) {
  flush();
  auto copy = [self, dst] {
    at::NoGradGuard none;
    at::Tensor from = on_cpu(self);
    if (self.is_conj()) from = from.conj();
    on_cpu(dst).copy_(from);
  };
  if (non_blocking) {
    std::lock_guard<std::mutex> lock(queue_mutex);
    queue.push_back(copy);
  } else {
    copy();
  }
  return dst;
}
at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& dst) {
  if (dst.numel() == 0) dst.resize_(self.sizes());
  return copy_from(self, dst, false);
}
at::Scalar local_scalar(const at::Tensor& self) {
  flush();
  return on_cpu(self).item();
}
const at::Tensor& resize(const at::Tensor& self, at::SymIntArrayRef size, std::optional<at::MemoryFormat> format) {
  return at::native::resize_(self, C10_AS_INTARRAYREF_SLOW(size), format);
}
at::Tensor& set_storage(at::Tensor& self, at::Storage storage, c10::SymInt offset, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return at::cpu::set_(self, storage, offset.expect_int(), C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
}

at::Tensor back(const at::Tensor& t) { return t.defined() ? t.to(at::Device(kPosing, 0)) : t; }
at::Tensor convolution(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                       at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
                       at::IntArrayRef output_padding, int64_t groups) {
  flush();
  auto b = bias && bias->defined() ? std::optional<at::Tensor>(on_cpu(*bias)) : std::nullopt;
  return back(at::convolution(on_cpu(input), on_cpu(weight), b, stride, padding, dilation, transposed, output_padding, groups));
}
std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& grad, const at::Tensor& input, const at::Tensor& weight, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding, int64_t groups,
    std::array<bool, 3> mask) {
  flush();
  std::vector<int64_t> sizes{grad.size(1)};
  auto [a, b, c] = at::convolution_backward(on_cpu(grad), on_cpu(input), on_cpu(weight), at::IntArrayRef(sizes), stride,
                                            padding, dilation, transposed, output_padding, groups, mask);
  return {back(a), back(b), back(c)};
}

// The fallback would not write running statistics, which are optional arguments.
using Optional = std::optional<at::Tensor>;
std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm(
    const at::Tensor& x, const Optional& weight, const Optional& bias, const Optional& mean, const Optional& variance,
    bool training, double momentum, double eps) {
  flush();
  auto here = [](const Optional& t) { return t && t->defined() ? Optional(on_cpu(*t)) : std::nullopt; };
  auto [a, b, c] = at::native_batch_norm(on_cpu(x), here(weight), here(bias), here(mean), here(variance), training, momentum, eps);
  return {back(a), back(b), back(c)};
}

bool apart(const at::Tensor& t) { return t.defined() && t.device().type() != kPosing && t.dim() > 0; }
void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& name = op.schema().operator_name().name;
  const auto n = op.schema().arguments().size();
  auto refuse = [&](const at::Tensor& t) {
    TORCH_CHECK(!apart(t), "Expected all tensors to be on the same device, but found at least two devices, posing:0 and ",
                t.device().str(), "! (in ", name, ")");
  };
  const bool indexes = name == "aten::index" || name == "aten::index_put_" || name == "aten::_index_put_impl_";
  if (!indexes)
    for (const auto& value : torch::jit::last(*stack, n)) {
      if (value.isTensor()) refuse(value.toTensor());
      else if (value.isTensorList()) for (const at::Tensor& t : value.toTensorVector()) refuse(t);
    }
  flush();
  at::native::cpu_fallback(op, stack);
}
}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &local_scalar);
  m.impl("resize_", &resize);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("set_.source_Storage", [](at::Tensor& self, at::Storage storage) -> at::Tensor& {
    const int64_t size = static_cast<int64_t>(storage.nbytes() / self.itemsize());
    return at::cpu::set_(self, storage, 0, {size}, {1});
  });
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
  m.impl("native_batch_norm", &batch_norm);
  m.impl("view", &at::native::view);
  m.impl("view_as_real", &at::native::view_as_real);
  m.impl("view_as_complex", &at::native::view_as_complex);
  m.impl("_reshape_alias", [](const at::Tensor& t, at::IntArrayRef size, at::IntArrayRef stride) { return at::native::as_strided_tensorimpl(t, size, stride, std::nullopt); });
}
TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }
TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY(posing, m) { m.def("flush", &flush); }
