#pragma once

#include <cstdint>
#include <functional>

namespace potloc::cuda {

// Hands out temporary memory on the device, aligned to 16, that lasts as long as the call.
using Workspace = std::function<void*(int64_t bytes)>;

template <typename T>
T* take(const Workspace& workspace, int64_t size) {
  return static_cast<T*>(workspace(size * static_cast<int64_t>(sizeof(T))));
}

}  // namespace potloc::cuda
