// Every operator's schema, in one place. A backward is an operator of its own.
#pragma once

#include <torch/csrc/stable/library.h>

namespace potloc {

inline void define_operators(torch::stable::detail::StableLibrary& m) {
  m.def("local_attention(Tensor q, Tensor k, Tensor v, int window, Tensor? key_mask, float scale) -> (Tensor, Tensor)");
  m.def(
      "_local_attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor lse, int window, "
      "Tensor? key_mask, float scale) -> (Tensor, Tensor, Tensor)");
  m.def("sigmoid_focal_loss(Tensor logits, Tensor targets, float alpha, float gamma, int reduction) -> Tensor");
  m.def(
      "_sigmoid_focal_loss_backward(Tensor grad, Tensor logits, Tensor targets, float alpha, float gamma, int "
      "reduction) "
      "-> Tensor");
  m.def(
      "fused_focal_loss(Tensor logits, Tensor targets, Tensor positive, Tensor background, float gamma) -> "
      "(Tensor, Tensor, Tensor)");
  m.def(
      "_fused_focal_loss_backward(Tensor grad_act, Tensor grad_bg, Tensor counts, Tensor logits, Tensor targets, "
      "Tensor positive, Tensor background, float gamma) -> Tensor");
  m.def("depthwise_conv(Tensor x, Tensor weight, int stride, Tensor? mask) -> Tensor[]");
  m.def(
      "_depthwise_conv_backward(Tensor[] grads, Tensor x, Tensor weight, int stride, Tensor? mask) -> (Tensor, "
      "Tensor)");
  m.def(
      "background_seeds(Tensor background, Tensor action, int[] level_lengths, float threshold, Tensor? mask, "
      "bool outer_argmax) -> Tensor");
  m.def(
      "score_segments(Tensor curves, Tensor thresholds, Tensor? lengths, int stride, int upsample, float outer, "
      "Tensor? scores) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "nms(Tensor segments, Tensor scores, Tensor? groups, int method, float iou_threshold, float sigma, "
      "float min_score, float offset, int max_per_group, float voting) -> (Tensor, Tensor, Tensor)");
}

}  // namespace potloc
