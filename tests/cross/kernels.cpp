// Calls the CPU kernels' baseline on made-up numbers and prints what they give, for scripts/aarch64.sh. Of torch it has
// headers alone, so that it can be built for another processor and run in an emulator.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdio>
#include <memory>
#include <vector>

#include "cpu/background_seeds.h"
#include "cpu/depthwise_conv.h"
#include "cpu/fused_focal_loss.h"
#include "cpu/local_attention.h"
#include "cpu/nms.h"
#include "cpu/score_segments.h"
#include "cpu/sigmoid_focal_loss.h"

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

// Products and sums alone: every processor gives the same, also of half types.
template <typename T, typename A>
void convolution(const char* name) {
  const int64_t length = 150, channels = 13, size = length * channels;
  const DepthwiseConv call{length, channels, 2, 2, nullptr};
  const std::vector<float> drawn = numbers(size, 9), weights = numbers(2 * 3 * channels, 10);
  const std::vector<T> x(drawn.begin(), drawn.end());
  const std::vector<A> weight(weights.begin(), weights.end());
  std::vector<T> one(call.out_length() * channels), other(one.size()), grad_x(size);
  T* const outs[] = {one.data(), other.data()};
  baseline::depthwise_conv_forward<T, A>(call, x.data(), weight.data(), outs, 0, 1);
  print(name, one);
  print(name, other);
  const int64_t blocks = (length + kDepthwiseBlock - 1) / kDepthwiseBlock;
  std::vector<A> partial(blocks * weight.size());
  const T* const grads[] = {one.data(), other.data()};
  baseline::depthwise_conv_backward<T, A>(
      call, grads, x.data(), weight.data(), grad_x.data(), partial.data(), 0, blocks);
  print(name, grad_x);
  print(name, partial);
}

void focal_losses() {
  const int64_t rows = 70, classes = 5, size = rows * (classes + 1);
  std::vector<float> logits = numbers(size, 11), targets = numbers(size, 12);
  std::unique_ptr<bool[]> positive(new bool[rows]), background(new bool[rows]);
  for (int64_t i = 0; i < size; ++i) {
    logits[i] *= 30;
    targets[i] = targets[i] > 0.5f;
  }
  for (int64_t i = 0; i < rows; ++i) {
    positive[i] = i % 3 == 0;
    background[i] = i % 3 == 1;
  }
  std::vector<float> loss(size), sums(2), grad(size);
  baseline::sigmoid_focal_loss_forward<float, float>(
      logits.data(), targets.data(), loss.data(), nullptr, 0.25f, 1.5f, size, 0, 1);
  print("focal", loss);
  const float one = 1;
  baseline::sigmoid_focal_loss_backward<float, float>(
      &one, 0, 0.5f, logits.data(), targets.data(), grad.data(), 0.25f, 1.5f, size, 0, 1);
  print("focal_grad", grad);
  baseline::fused_focal_loss_forward<float, float>(
      logits.data(), targets.data(), positive.get(), background.get(), sums.data(), 2.0f, rows, classes, 0, 1);
  print("fused", sums);
  baseline::fused_focal_loss_backward<float, float>(
      0.5f, 0.25f, logits.data(), targets.data(), positive.get(), background.get(), grad.data(), 2.0f, rows, classes, 0,
      1);
  print("fused_grad", grad);
}

void proposals() {
  const int64_t rows = 4, width = 90;
  const ScoreSegments call{width, 3, 2, 4, 0.25, nullptr};
  const std::vector<float> curves = numbers(rows * width, 13), thresholds{-0.5f, 0, 0.5f};
  std::vector<ScoredSegment<float>> found;
  std::vector<int64_t> counts(rows * 3);
  baseline::score_segments<float, float>(
      call, curves.data(), nullptr, thresholds.data(), found, counts.data(), 0, rows);
  print("counts", counts);
  std::vector<float> flat;
  for (const ScoredSegment<float>& one : found) {
    flat.insert(flat.end(), {one.start, one.end, one.score});
  }
  print("proposals", flat);
}

}  // namespace

int main() {
  attention();
  seeds();
  suppression(NmsMethod::hard, "nms");
  suppression(NmsMethod::linear, "linear");
  suppression(NmsMethod::gaussian, "gaussian");
  convolution<float, float>("convolution");
  convolution<double, double>("convolution_double");
  convolution<torch::headeronly::Half, float>("convolution_half");
  convolution<torch::headeronly::BFloat16, float>("convolution_bfloat16");
  focal_losses();
  proposals();
}
