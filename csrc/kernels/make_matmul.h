// Fills the matrix product table of one ISA. Included by isa/matmul.cpp only.
#pragma once

#include "kernels/multiply.h"
#include "kernels/stream.h"

namespace kvant {

template <class Format>
constexpr int kGroupsOf = 32 / Format::kInfo.group;

template <class V, class Format, bool kSteady, int kTiles, int... c>
constexpr void pick_columns(MultiplyKernel* row, ColumnList<c...>) {
  constexpr int kGroups = kGroupsOf<Format>;
  ((row[c] = &multiply_chunk<V, kGroups, Format::kHasMin, V::dot_class(Format::kCodeMax), kSteady, kTiles, c + 1>), ...);
}

template <class V, int kTiles, int... c>
constexpr void pick_float_columns(MultiplyFloats* row, ColumnList<c...>) {
  ((row[c] = &multiply_floats<V, kTiles, c + 1>), ...);
}

template <int n, int... c>
constexpr auto column_list() {
  if constexpr (n == 0) return ColumnList<c...>{};
  else return column_list<n - 1, n - 1, c...>();
}

template <class V, class Format, int kTiles>
constexpr void pick_tiles(FormatProducts& f) {
  if constexpr (kTiles > 0) {
    pick_tiles<V, Format, kTiles - 1>(f);
    constexpr auto columns = column_list<V::kMaxColumns[kGroupsOf<Format> - 1]>();
    pick_columns<V, Format, false, kTiles>(f.multiply[kTiles - 1], columns);
    if constexpr (V::kSteady) pick_columns<V, Format, true, kTiles>(f.multiply_steady[kTiles - 1], columns);
  }
}

template <class V, class Format>
constexpr FormatProducts format_products() {
  FormatProducts f = {};
  f.pack = &pack_chunk<V, Format>;
  f.unpack = &unpack_chunk<V, Format>;
  f.floats = &expand_floats<V, Format>;
  if constexpr (Format::kInfo.block > 1) {
    f.expand = &expand_chunk<V, Format>;
    if constexpr (V::kStreams) f.stream = &stream_chunk<V, Format>;
    f.shape = {kGroupsOf<Format>, Format::kHasMin, code_offset<V, Format>()};
    pick_tiles<V, Format, V::kMaxTiles>(f);
  } else {
    f.stream = &stream_floats<V, Format>;
  }
  return f;
}

template <class V, int kTiles>
constexpr void pick_float_tiles(MatmulKernels& k) {
  if constexpr (kTiles > 0) {
    pick_float_tiles<V, kTiles - 1>(k);
    pick_float_columns<V, kTiles>(k.floats[kTiles - 1], column_list<V::kMaxFloatColumns>());
  }
}

template <class V, class... Formats>
constexpr MatmulKernels fill_matmul(TypeList<Formats...>) {
  MatmulKernels k = {V::kMaxTiles, V::kMaxFloatColumns, {V::kMaxColumns[0], V::kMaxColumns[1]},
                     &quantize_row<V>, &write_records<V>, {}, &finish_sums<V>, {format_products<V, Formats>()...}};
  pick_float_tiles<V, V::kMaxTiles>(k);
  return k;
}

template <class Native>
constexpr MatmulKernels make_matmul() {
  return fill_matmul<Wide<Native>>(FormatList{});
}

}  // namespace kvant
