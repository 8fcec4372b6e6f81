// The forward pass of nn::conv.
#pragma once

#include "conv.hpp"

namespace brgemm::inline abi_0::nn {

inline result<void> conv::forward(loops::executor_ref threads, index images, const void* x, const void* weights,
                                  const float* bias, void* y) const noexcept {
  if (images < 1 || images > d_.images) {
    return error(errc::invalid_argument, "images", "images is %ld; this plan takes 1..%ld", images, d_.images);
  }
  const detail::buffer written[] = {{"y", y, images * image_y() * size_of(d_.y), size_of(d_.y)}};
  const detail::buffer read[] = {{"x", x, images * image_x() * size_of(d_.data), size_of(d_.data)},
                                 {"weights", weights, weights_bytes(), size_of(d_.data)},
                                 {"bias", bias, d_.bias ? d_.out * 4 : 0}};
  if (auto r = detail::check_buffers(written, read); !r) return r;
  const index panels = nn::panels(out());
  // Enough bands of an image that all threads have work of nearly equal size.
  const index tasks = d_.groups * panels * images;
  const index bands = std::clamp<index>((8 * threads.threads() + tasks - 1) / tasks, 1, pieces_);
  loops::parallel_for(threads, {d_.groups, panels, images, bands}, [&](index g, index panel, index image, index band) {
    const index channel = g * out() + panel * width_;
    arguments call;
    call.b = static_cast<const char*>(weights) + (g * panels + panel) * panel_ * size_of(d_.data);
    if (d_.bias) call.operand[0] = const_cast<float*>(bias + channel);
    for (int s = 0; s < steps_; ++s) {
      for (index i = pieces_ * band / bands; i < pieces_ * (band + 1) / bands; ++i) {
        const planned_piece& p = piece_[i];
        const index entries = this->entries(p.place.taps, p.place.taps_w);
        call.a = static_cast<const char*>(x) + (image * image_x() + g * in() + p.place.a) * size_of(d_.data);
        call.c = static_cast<char*>(y) + (image * image_y() + channel + p.place.c) * size_of(d_.y);
        call.pairs = pairs_.get() + p.pairs + step_[s].first * entries;
        call.lda = p.place.lda;
        call.batch = step_[s].chunks * entries;
        kernels_[p.kernels + s][(panel + 1) * width_ <= out()](call);
      }
    }
  });
  return {};
}

}  // namespace brgemm::inline abi_0::nn
