// Calls the CPU kernels' baseline on made-up numbers and prints what they give, for scripts/aarch64.sh: no torch, no
// Python, so that it can be built for another processor and run in an emulator.
#include <cstdio>
#include <memory>
#include <vector>

#include "cpu/background_seeds.h"
#include "cpu/depthwise_conv.h"
#include "cpu/local_attention.h"
#include "cpu/nms.h"

namespace {

using namespace potloc;
using namespace potloc::cpu;

// Numbers in [-1, 1) that every machine makes alike.
std::vector<float> numbers(int64_t count, uint32_t seed) {
  std::vector<float> made(count);
  for (float& number : made) {
    seed = seed * 1664525u + 1013904223u;
    number = static_cast<float>(seed >> 8) / (1 << 23) - 1;
  }
  return made;
}

template <typename T>
void print(const char* name, const std::vector<T>& values) {
  for (size_t i = 0; i < values.size(); ++i) {
    std::printf("%s[%zu] %.9g\n", name, i, static_cast<double>(values[i]));
  }
}

void attention() {
  const int64_t heads = 2, length = 75, width = 24, radius = 4, size = heads * length * width;
  const LocalAttention call{heads, length, width, radius, 16, 0.2, nullptr, 0};
  const std::vector<float> q = numbers(size, 1), k = numbers(size, 2), v = numbers(size, 3), grad = numbers(size, 4);
  std::vector<float> out(size), lse(heads * length), grad_q(size), grad_k(size), grad_v(size);
  const auto strided = [&](auto* data) {
    return Strided<std::remove_pointer_t<decltype(data)>>{data, {size, length * width, width}};
  };
  const int64_t blocks = heads * ((length + call.block - 1) / call.block);
  baseline::local_attention_forward<float, float>(
      call, strided(q.data()), strided(k.data()), strided(v.data()), strided(out.data()), lse.data(), 0, blocks);
  baseline::local_attention_backward<float, float>(
      call, strided(grad.data()), strided(q.data()), strided(k.data()), strided(v.data()), lse.data(),
      strided(grad_q.data()), strided(grad_k.data()), strided(grad_v.data()), 0, blocks);
  print("attention", out);
  print("attention_lse", lse);
  print("attention_grad_q", grad_q);
  print("attention_grad_k", grad_k);
  print("attention_grad_v", grad_v);
}

void seeds() {
  const int64_t begin[] = {0, 60, 90}, width = 90;
  const BackgroundSeeds call{width, 2, begin, nullptr, 0.6, true};
  const std::vector<float> background = numbers(width, 5), drawn = numbers(width, 6);
  std::unique_ptr<bool[]> action(new bool[width]), found(new bool[width]());
  for (int64_t t = 0; t < width; ++t) {
    action[t] = drawn[t] > 0.8f;
  }
  baseline::background_seeds<float>(call, background.data(), action.get(), found.get(), 0, 2);
  print("seeds", std::vector<int>(found.get(), found.get() + width));
}

void suppression(NmsMethod method, const char* name) {
  const int64_t size = 80;
  const Nms rules{method, 0.4, 0.5, 0.001, 0, size, 0.6};
  std::vector<float> segments = numbers(2 * size, 7), scores = numbers(size, 8);
  std::vector<int64_t> members(size), begin{0, size}, kept(size), count(1);
  for (int64_t i = 0; i < size; ++i) {
    segments[2 * i] = 50 * (segments[2 * i] + 1);
    segments[2 * i + 1] = segments[2 * i] + 10 * (segments[2 * i + 1] + 1.1f);
    scores[i] = (scores[i] + 1) / 2;
    members[i] = i;
  }
  std::vector<float> kept_segments(2 * size), kept_scores(size);
  baseline::nms<float>(
      rules, segments.data(), scores.data(), members.data(), begin.data(), kept_segments.data(), kept_scores.data(),
      kept.data(), count.data(), 0, 1);
  kept.resize(count[0]);
  kept_segments.resize(2 * count[0]);
  kept_scores.resize(count[0]);
  print(name, kept);
  print(name, kept_segments);
  print(name, kept_scores);
}

void convolution() {
  const int64_t length = 33, channels = 13;
  const DepthwiseConv call{length, channels, 1, 2, nullptr};
  const std::vector<float> x = numbers(length * channels, 9), weight = numbers(3 * channels, 10);
  std::vector<float> out(call.out_length() * channels);
  float* const outs[] = {out.data()};
  const int64_t blocks = (call.out_length() + kDepthwiseBlock - 1) / kDepthwiseBlock;
  baseline::depthwise_conv_forward<float, float>(call, x.data(), weight.data(), outs, 0, blocks);
  print("convolution", out);
}

}  // namespace

int main() {
  attention();
  seeds();
  suppression(NmsMethod::hard, "nms");
  suppression(NmsMethod::linear, "linear");
  suppression(NmsMethod::gaussian, "gaussian");
  convolution();
}
