#pragma once

#include <cstdint>

#include "cpu/capability.h"

namespace potloc::cpu {

// Elements that are summed as one: partial sums do not depend on the number of threads.
inline constexpr int64_t kFocalChunk = 4096;

// Elements of the chunks [begin, end). Forward writes each element's loss where `loss` is not null, else the sum of
// each chunk to `partial`. Backward multiplies by grad[i * grad_stride]; a grad_stride of 0 broadcasts a scalar.
POTLOC_FOR_EACH_CAPABILITY(
    template <typename T, typename A> void sigmoid_focal_loss_forward(
        const T* logits, const T* targets, T* loss, A* partial, A alpha, A gamma, int64_t size, int64_t begin,
        int64_t end);
    template <typename T, typename A> void sigmoid_focal_loss_backward(
        const T* grad, int64_t grad_stride, A factor, const T* logits, const T* targets, T* grad_logits, A alpha,
        A gamma, int64_t size, int64_t begin, int64_t end);)

}  // namespace potloc::cpu
