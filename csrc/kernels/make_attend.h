// Fills the table of attention of one ISA. Included by isa/attend.cpp only.
#pragma once

#include "kernels/attend.h"
#include "kernels/encode.h"
#include "kernels/kv_channels.h"
#include "kernels/kv_encode.h"

namespace kvant {

template <class Format, class... Formats>
constexpr bool is_one_of(TypeList<Formats...>) {
  return (__is_same(Format, Formats) || ...);
}

template <class V, class C>
constexpr KvCodecKernels codec_kernels() {
  KvCodecKernels k = {};
  if constexpr (C::kRowScale) k.encode = &encode_codebook<V, C>;
  if constexpr (requires { typename C::Format; }) {
    if constexpr (!is_one_of<typename C::Format>(FormatList{})) k.encode_blocks = &encode_blocks<V, typename C::Format>;
  }
  k.read = &read_rows<V, C>;
  k.write = &write_rows<V, C>;
  k.put[1] = &put_rows<V, C, ValuePlace>;
  k.take[1] = &take_rows<V, C, ValuePlace>;
  if constexpr (!kKeysLie<V, C>) k.expand[0] = &expand_keys<V, C>;
  if constexpr (!kValuesLie<C>) k.expand[1] = &expand_values<V, C>;
  if constexpr (requires { C::kKeyGroup; }) {
    k.code_keys = &code_keys<V, C>;
    k.decode_keys = &decode_keys<V, C>;
    k.score = &score_channels<V, C>;
  } else {
    k.put[0] = &put_rows<V, C, KeyPlace>;
    k.take[0] = &take_rows<V, C, KeyPlace>;
    k.score = &score_codes<V, C>;
    k.turn = &turn_codes<V, C>;
  }
  k.direct[0] = kPlaneScores<V, C>;
  k.direct[1] = kPlaneMixes<V, C>;
  k.mix[0] = &mix_codes<V, C>;
  k.mix[1] = &mix_codes_finely<V, C>;
  k.group = V::kMaxColumns[0];
  k.offset = key_offset<V, C>();
  return k;
}

template <class V, class... C>
constexpr AttendKernels fill_attend(TypeList<C...>) {
  return {{{}, {}, {}, codec_kernels<V, C>()...},
          &attend_chunk<V>,
          &merge_states<V>,
          &finish_state<V>,
          {&put_keys<V, float>, &put_keys<V, Halves>, &put_keys<V, Brains>},
          {&put_values<V, float>, &put_values<V, Halves>, &put_values<V, Brains>},
          {&take_keys<V, float>, &take_keys<V, Halves>, &take_keys<V, Brains>},
          {&take_values<V, float>, &take_values<V, Halves>, &take_values<V, Brains>}};
}

template <class Native>
constexpr AttendKernels make_attend() {
  return fill_attend<Wide<Native>>(QuantizedCodecs{});
}

}  // namespace kvant
