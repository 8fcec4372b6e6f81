// Softmax and cross-entropy in one: the loss of a classifier and its gradient by the logits.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>

#include "../core/result.hpp"
#include "../core/view.hpp"
#include "../loops/parallel_for.hpp"

namespace brgemm::inline abi_0::detail {

inline result<void> check_labels(index rows, index classes, std::span<const std::int32_t> labels) noexcept {
  const auto number = [](auto x) { return static_cast<long long>(x); };
  if (number(labels.size()) != rows || labels.data() == nullptr) {
    return error(errc::invalid_argument, "labels", "%lld rows of logits but %lld labels at %p", number(rows),
                 number(labels.size()), static_cast<const void*>(labels.data()));
  }
  for (std::size_t r = 0; r < labels.size(); ++r) {
    if (labels[r] >= 0 && labels[r] < classes) continue;
    return error(errc::invalid_argument, "labels", "label %d of row %zu is none of the %lld classes", labels[r], r,
                 number(classes));
  }
  return {};
}

inline result<void> check_loss(const view<const float, 2>& logits, std::span<const std::int32_t> labels,
                               std::span<double> losses, const view<float, 2>& gradient) noexcept {
  const index rows = logits.extent(0);
  const index classes = logits.extent(1);
  const auto number = [](auto x) { return static_cast<long long>(x); };
  if (rows < 1 || classes < 1 || logits.data() == nullptr) {
    return error(errc::invalid_argument, "logits", "logits of shape (%lld, %lld) at %p", number(rows), number(classes),
                 static_cast<const void*>(logits.data()));
  }
  if (number(losses.size()) != rows || losses.data() == nullptr) {
    return error(errc::invalid_argument, "losses", "%lld rows of logits but room for %lld losses at %p", number(rows),
                 number(losses.size()), static_cast<void*>(losses.data()));
  }
  if (gradient.shape() != logits.shape() || gradient.data() == nullptr) {
    return error(errc::invalid_argument, "gradient", "logits are (%lld, %lld), the gradient is (%lld, %lld) at %p",
                 number(rows), number(classes), number(gradient.extent(0)), number(gradient.extent(1)),
                 static_cast<const void*>(gradient.data()));
  }
  return check_labels(rows, classes, labels);
}

}  // namespace brgemm::inline abi_0::detail

namespace brgemm::inline abi_0::train {

/// The mean over the rows of -log(softmax(logits)[label]).
/// logits (N, classes), any strides; labels (N), each in 0..classes-1; losses (N) gets each row's loss; gradient
/// (N, classes) gets (softmax - [class = label]) / N; it may be `logits` itself (same address and strides), and
/// overlaps nothing else. A row's largest logit is subtracted first, so no exp overflows. Sums are in double and in
/// ascending order: equal bits for any number of threads. Errors: invalid_argument with the argument's name, before
/// anything is written.
inline result<double> softmax_cross_entropy(loops::executor_ref threads, const view<const float, 2>& logits,
                                            std::span<const std::int32_t> labels, std::span<double> losses,
                                            const view<float, 2>& gradient) noexcept {
  if (const auto checked = detail::check_loss(logits, labels, losses, gradient); !checked) return checked.error();
  const index classes = logits.extent(1);
  const auto share = 1.0 / static_cast<double>(logits.extent(0));
  loops::parallel_for(threads, {logits.extent(0)}, [&](index r) {
    double largest = logits(r, 0);
    for (index c = 1; c < classes; ++c) largest = logits(r, c) > largest ? logits(r, c) : largest;
    double sum = 0;
    for (index c = 0; c < classes; ++c) sum += std::exp(logits(r, c) - largest);
    const index label = labels[static_cast<std::size_t>(r)];
    losses[static_cast<std::size_t>(r)] = std::log(sum) - (logits(r, label) - largest);
    for (index c = 0; c < classes; ++c) {
      const double probability = std::exp(logits(r, c) - largest) / sum;
      gradient(r, c) = static_cast<float>((probability - (c == label ? 1.0 : 0.0)) * share);
    }
  });
  double total = 0;
  for (const double loss : losses) total += loss;
  return total * share;
}

}  // namespace brgemm::inline abi_0::train
