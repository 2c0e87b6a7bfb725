// Fills the coding table of one ISA from the list of formats. Included by isa/codec.cpp only.
#pragma once

#include "kernels/check.h"
#include "kernels/decode.h"
#include "kernels/encode.h"

namespace kvant {

template <class V, class Format>
constexpr auto pick_encode() -> bool (*)(const EncodeJob&) noexcept {
  if constexpr (!Format::kInfo.can_encode) {
    return nullptr;
  } else if constexpr (Format::kInfo.block == 1) {
    return &encode_floats<V, Format>;
  } else {
    return &encode_blocks<V, Format>;
  }
}

template <class V, class Format>
constexpr auto pick_decode() -> void (*)(const uint8_t*, float*, int64_t, bool) noexcept {
  if constexpr (Format::kInfo.block == 1) {
    return &decode_floats<V, Format>;
  } else {
    return &decode_blocks<V, Format>;
  }
}

template <class V, class... Formats>
constexpr CodecKernels fill_codec(TypeList<Formats...>) {
  return {{pick_encode<V, Formats>()...},
          {pick_decode<V, Formats>()...},
          {&first_invalid_block<V, Formats>...},
          &find_nonfinite<V>,
          &widen_floats<V>,
          &narrow_floats<V>,
          &measure_row<V>};
}

template <class Native>
constexpr CodecKernels make_codec() {
  return fill_codec<Wide<Native>>(FormatList{});
}

}  // namespace kvant
