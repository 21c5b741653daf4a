#pragma once

#include <cstdint>

#include "cpu/capability.h"

namespace potloc::cpu {

// Rows that are summed as one: partial sums do not depend on the number of threads.
inline constexpr int64_t kFusedFocalChunk = 256;

// Rows of the chunks [begin, end) of logits [N, C + 1], targets [N, C], positive and background [N]. Forward writes the
// sums over each chunk's positive and background rows to `partial` [chunks, 2]; backward the gradient of
// act_factor * (sum over positive rows) + bg_factor * (sum over background rows).
POTLOC_FOR_EACH_CAPABILITY(
    template <typename T, typename A> void fused_focal_loss_forward(
        const T* logits, const T* targets, const bool* positive, const bool* background, A* partial, A gamma,
        int64_t rows, int64_t classes, int64_t begin, int64_t end);
    template <typename T, typename A> void fused_focal_loss_backward(
        A act_factor, A bg_factor, const T* logits, const T* targets, const bool* positive, const bool* background,
        T* grad_logits, A gamma, int64_t rows, int64_t classes, int64_t begin, int64_t end);)

}  // namespace potloc::cpu
