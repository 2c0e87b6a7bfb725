// The vector shape kernels are written for: kLanes lanes of f32 or i32, 16 on every SIMD ISA whatever
// its registers, 1 on scalar.
//
// Wide<N> builds it from N::kParts native registers of N::kWidth lanes of an ISA tag N (NEON 4 x 4,
// AVX2 2 x 8, AVX-512 1 x 16) and passes every operation on. The meaning of each operation is the one stated here
// on every ISA, NaN and signed zero included:
//   min(a, b) = a < b ? a : b, max(a, b) = a > b ? a : b  (so b when either is NaN or both equal)
//   trunc(x)  = toward zero; NaN and what int32 cannot hold give INT32_MIN, as x86 does
//   a / b, sqrt are correctly rounded; nothing is fused unless fma says so
//   fma(a, b, c) = a * b + c, rounded once
// ISA tags live in unnamed namespaces, so that everything here has internal linkage per ISA.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/contracts.h"

namespace kvant {

#define KVANT_EACH for (int p = 0; p < N::kParts; ++p)

template <class N>
struct Wide {
  static constexpr int kWidth = N::kWidth;
  static constexpr int kLanes = N::kParts * N::kWidth;
  static constexpr bool kHasTables = N::kHasTables;
  using Native = N;

  struct M {
    typename N::M v[N::kParts];
    KVANT_MEMBER friend M operator&(M a, M b) { KVANT_EACH a.v[p] = N::mask_and(a.v[p], b.v[p]); return a; }
    KVANT_MEMBER friend M operator|(M a, M b) { KVANT_EACH a.v[p] = N::mask_or(a.v[p], b.v[p]); return a; }
    KVANT_MEMBER friend M operator!(M a) { KVANT_EACH a.v[p] = N::mask_not(a.v[p]); return a; }
  };

  struct F {
    typename N::F v[N::kParts];
    KVANT_MEMBER friend F operator+(F a, F b) { KVANT_EACH a.v[p] = N::add(a.v[p], b.v[p]); return a; }
    KVANT_MEMBER friend F operator-(F a, F b) { KVANT_EACH a.v[p] = N::sub(a.v[p], b.v[p]); return a; }
    KVANT_MEMBER friend F operator*(F a, F b) { KVANT_EACH a.v[p] = N::mul(a.v[p], b.v[p]); return a; }
    KVANT_MEMBER friend F operator/(F a, F b) { KVANT_EACH a.v[p] = N::div(a.v[p], b.v[p]); return a; }
    KVANT_MEMBER friend M operator<(F a, F b) { M m; KVANT_EACH m.v[p] = N::lt(a.v[p], b.v[p]); return m; }
    KVANT_MEMBER friend M operator>(F a, F b) { return b < a; }
    KVANT_MEMBER friend M operator<=(F a, F b) { M m; KVANT_EACH m.v[p] = N::le(a.v[p], b.v[p]); return m; }
    KVANT_MEMBER friend M operator>=(F a, F b) { return b <= a; }
    KVANT_MEMBER friend M operator==(F a, F b) { M m; KVANT_EACH m.v[p] = N::eq(a.v[p], b.v[p]); return m; }
    KVANT_MEMBER friend M operator!=(F a, F b) { return !(a == b); }
  };

  struct I {
    typename N::I v[N::kParts];
    KVANT_MEMBER friend I operator+(I a, I b) { KVANT_EACH a.v[p] = N::iadd(a.v[p], b.v[p]); return a; }
    KVANT_MEMBER friend I operator-(I a, I b) { KVANT_EACH a.v[p] = N::isub(a.v[p], b.v[p]); return a; }
    KVANT_MEMBER friend I operator&(I a, I b) { KVANT_EACH a.v[p] = N::iand(a.v[p], b.v[p]); return a; }
    KVANT_MEMBER friend I operator^(I a, I b) { KVANT_EACH a.v[p] = N::ixor(a.v[p], b.v[p]); return a; }
    KVANT_MEMBER friend I operator|(I a, I b) { KVANT_EACH a.v[p] = N::ior(a.v[p], b.v[p]); return a; }
    KVANT_MEMBER friend M operator==(I a, I b) { M m; KVANT_EACH m.v[p] = N::ieq(a.v[p], b.v[p]); return m; }
    template <int S> KVANT_MEMBER I shl() const { I r; KVANT_EACH r.v[p] = N::template shl<S>(v[p]); return r; }
    template <int S> KVANT_MEMBER I shr() const { I r; KVANT_EACH r.v[p] = N::template shr<S>(v[p]); return r; }
  };

  KVANT_INLINE F splat(float x) { F r; KVANT_EACH r.v[p] = N::splat(x); return r; }
  KVANT_INLINE I splat_i(int32_t x) { I r; KVANT_EACH r.v[p] = N::isplat(x); return r; }
  KVANT_INLINE F load(const float* x) { F r; KVANT_EACH r.v[p] = N::load(x + p * kWidth); return r; }
  KVANT_INLINE void store(float* x, F a) { KVANT_EACH N::store(x + p * kWidth, a.v[p]); }
  // Around the caches; x is aligned to 64 bytes.
  KVANT_INLINE void stream(float* x, F a) { KVANT_EACH N::stream(x + p * kWidth, a.v[p]); }
  KVANT_INLINE void fence() { N::fence(); }
  KVANT_INLINE I load_i(const int32_t* x) { I r; KVANT_EACH r.v[p] = N::iload(x + p * kWidth); return r; }
  KVANT_INLINE void store_i(int32_t* x, I a) { KVANT_EACH N::istore(x + p * kWidth, a.v[p]); }
  KVANT_INLINE F load_i8(const int8_t* x) { F r; KVANT_EACH r.v[p] = N::load_i8(x + p * kWidth); return r; }
  KVANT_INLINE F load_f16(const uint16_t* x) { F r; KVANT_EACH r.v[p] = N::load_f16(x + p * kWidth); return r; }
  KVANT_INLINE void store_f16(uint16_t* x, F a) { KVANT_EACH N::store_f16(x + p * kWidth, a.v[p]); }
  KVANT_INLINE F load_bf16(const uint16_t* x) { F r; KVANT_EACH r.v[p] = N::load_bf16(x + p * kWidth); return r; }
  KVANT_INLINE F round_to_f16(F a) { KVANT_EACH a.v[p] = N::round_to_f16(a.v[p]); return a; }

  KVANT_INLINE F min(F a, F b) { KVANT_EACH a.v[p] = N::min(a.v[p], b.v[p]); return a; }
  KVANT_INLINE F max(F a, F b) { KVANT_EACH a.v[p] = N::max(a.v[p], b.v[p]); return a; }
  KVANT_INLINE F abs(F a) { KVANT_EACH a.v[p] = N::abs(a.v[p]); return a; }
  KVANT_INLINE F neg(F a) { KVANT_EACH a.v[p] = N::neg(a.v[p]); return a; }
  KVANT_INLINE F sqrt(F a) { KVANT_EACH a.v[p] = N::sqrt(a.v[p]); return a; }
  KVANT_INLINE F copysign(F magnitude, F sign) { KVANT_EACH magnitude.v[p] = N::copysign(magnitude.v[p], sign.v[p]); return magnitude; }
  KVANT_INLINE I imin(I a, I b) { KVANT_EACH a.v[p] = N::imin(a.v[p], b.v[p]); return a; }
  KVANT_INLINE I imax(I a, I b) { KVANT_EACH a.v[p] = N::imax(a.v[p], b.v[p]); return a; }
  KVANT_INLINE F select(M m, F a, F b) { KVANT_EACH a.v[p] = N::select(m.v[p], a.v[p], b.v[p]); return a; }
  KVANT_INLINE I select(M m, I a, I b) { KVANT_EACH a.v[p] = N::iselect(m.v[p], a.v[p], b.v[p]); return a; }
  KVANT_INLINE bool any(M m) { bool r = false; KVANT_EACH r |= N::any(m.v[p]); return r; }
  KVANT_INLINE F to_f32(I a) { F r; KVANT_EACH r.v[p] = N::to_f32(a.v[p]); return r; }
  KVANT_INLINE I trunc(F a) { I r; KVANT_EACH r.v[p] = N::trunc(a.v[p]); return r; }
  KVANT_INLINE I bits(F a) { I r; KVANT_EACH r.v[p] = N::bits(a.v[p]); return r; }
  KVANT_INLINE F from_bits(I a) { F r; KVANT_EACH r.v[p] = N::from_bits(a.v[p]); return r; }

  // out[i * kLanes + lane] = row(lane)[i] for i < count; count is a multiple of 16.
  template <class Row>
  KVANT_INLINE void transpose(Row&& row, int count, float* out) {
    for (int i = 0; i < count; i += 16) N::transpose(row, i, out + size_t(i) * kLanes);
  }

  // Four words of four bytes of sixteen rows: out[word][row] = row(r)[word].
  template <class Row>
  KVANT_INLINE void transpose_words(Row&& row, uint8_t* out) {
    N::transpose4([&](int r) KVANT_LAMBDA { return reinterpret_cast<const float*>(row(r)); },
                  reinterpret_cast<float*>(out));
  }

  // Lane l of the result is the largest lane, or the sum of the lanes, of a[l].
  KVANT_INLINE I largest_of_each(const I (&a)[kLanes]) { return fold_each<&N::imax>(a); }
  KVANT_INLINE I sum_of_each(const I (&a)[kLanes]) { return fold_each<&N::iadd>(a); }
  template <typename N::I (*op)(typename N::I, typename N::I)>
  KVANT_INLINE I fold_each(const I (&a)[kLanes]) {
    I r;
    KVANT_EACH {
      typename N::I rows[kWidth];
      for (int l = 0; l < kWidth; ++l) {
        const I& row = a[p * kWidth + l];
        rows[l] = row.v[0];
        for (int q = 1; q < N::kParts; ++q) rows[l] = op(rows[l], row.v[q]);
      }
      r.v[p] = N::template fold_each<op>(rows);
    }
    return r;
  }

  // The low byte of every lane.
  KVANT_INLINE void store_bytes(uint8_t* out, I a) { N::store_bytes(out, a.v); }

  // The low bytes of lanes of four: of lane l of a[i] to out[16 * (l / 4) + 4 * i + l % 4].
  KVANT_INLINE void store_four_bytes(uint8_t* out, const I (&a)[4]) {
    KVANT_EACH N::store_four_bytes(out + 4 * p * kWidth, a[0].v[p], a[1].v[p], a[2].v[p], a[3].v[p]);
  }

  KVANT_INLINE I load_u8(const uint8_t* x) { I r; KVANT_EACH r.v[p] = N::load_u8(x + p * kWidth); return r; }
  // The half in the low sixteen bits of every lane.
  KVANT_INLINE F low_half(I a) { F r; KVANT_EACH r.v[p] = N::low_half(a.v[p]); return r; }
  // Every byte of a looked up: table[a], a in 0..15.
  KVANT_INLINE I lookup_bytes(const uint8_t* table, I a) { KVANT_EACH a.v[p] = N::lookup_bytes(table, a.v[p]); return a; }
  // Entries of eight bytes: the first four of each, and the last.
  KVANT_INLINE void gather_pairs(const uint64_t* table, I index, I& low, I& high) {
    KVANT_EACH N::gather_pairs(table, index.v[p], low.v[p], high.v[p]);
  }
  KVANT_INLINE I gather(const uint32_t* table, I index) { I r; KVANT_EACH r.v[p] = N::gather(table, index.v[p]); return r; }

  // sum[t][c] = start[c] + four adjacent products of codes and q in every lane, kSteps times. Step s of tile t
  // takes the codes at codes + t * stride + 64 * s, four per lane, and of column c the four bytes at
  // q + 32 * c + 4 * s. Codes are unsigned and at most kMax; kMax = 255 stands for codes over the
  // whole range of eight bits, unsigned where kWideOffset is 128 and signed where it is 0. q is
  // signed and not -128. The sums are exact.
  template <int kSteps, int kMax, int kTiles, int kColumns>
  KVANT_INLINE void dot(const uint8_t* codes, int64_t stride, const uint8_t* q, const int32_t* start,
                        I (&sum)[kTiles][kColumns]) {
    N::template dot<kSteps, kMax>(codes, stride, q, start, sum);
  }
  // One such step, where kStreams: four codes and four bytes of q in every lane.
  template <int kMax>
  KVANT_INLINE I dot4(I sum, I codes, I q) { KVANT_EACH sum.v[p] = N::template dot4<kMax>(sum.v[p], codes.v[p], q.v[p]); return sum; }
  // sum + four adjacent products in every lane, of unsigned and of signed bytes; exact.
  KVANT_INLINE I dot_bytes(I sum, I u, I s) { KVANT_EACH sum.v[p] = N::dot_bytes(sum.v[p], u.v[p], s.v[p]); return sum; }
  // Byte by byte, modulo 256.
  KVANT_INLINE I sub_bytes(I a, I b) { KVANT_EACH a.v[p] = N::sub_bytes(a.v[p], b.v[p]); return a; }
  // Whether sums of a whole block fit the registers, so that codes need no tile between.
  static constexpr bool kStreams = kLanes > 1 && N::kParts == 1;
  static constexpr int kWideOffset = N::kWideOffset;
  // The largest register tile, and the largest code of those that one dot() serves alike.
  static constexpr int kMaxTiles = N::kTiles, kMaxFloatColumns = N::kFloatColumns;
  static constexpr int kMaxColumns[2] = {N::kColumns[0], N::kColumns[1]};  // for groups of 32, of 16
  static constexpr bool kSteady = N::kSteady;  // whether steady tiles are worth kernels of their own
  static constexpr int dot_class(int max) { return N::dot_class(max); }

  // Four words of every lane: those of lane 4q + j go to out + (4j + q) * 16.
  KVANT_INLINE void store_quads(uint8_t* out, I a, I b, I c, I d) {
    KVANT_EACH N::store_quads(out, p, a.v[p], b.v[p], c.v[p], d.v[p]);
  }

  // The low four bits of every lane as a float.
  KVANT_INLINE F low_nibble(I a) { F r; KVANT_EACH r.v[p] = N::low_nibble(a.v[p]); return r; }

  // table[index], index in 0..31; only where kHasTables.
  KVANT_INLINE F table32(const float* table, I index) { F r; KVANT_EACH r.v[p] = N::table32(table, index.v[p]); return r; }

  // What the operations around products need: one rounding, and pairs of lanes exchanged.
  KVANT_INLINE F fma(F a, F b, F c) { KVANT_EACH c.v[p] = N::fma(a.v[p], b.v[p], c.v[p]); return c; }
  // Lanes 2i and 2i + 1 change places; on scalar, whose only lane has no partner, there is none.
  KVANT_INLINE F swap_pairs(F a) { KVANT_EACH a.v[p] = N::swap_pairs(a.v[p]); return a; }

  // Sums and differences of lanes 1, 2, 4 and 8 apart, in this order: the lower lane gets the sum. Of sixteen lanes.
  KVANT_INLINE F butterflies(F a) { N::butterflies(a.v); return a; }

  // Codes that index a 16-entry table, in place: codes[i] = table[codes[i]].
  KVANT_INLINE void lookup(const int8_t* table, int8_t* codes, int count) { N::lookup(table, codes, count); }
};

#undef KVANT_EACH

}  // namespace kvant
