// mxfp4: blocks of 32, exponent e (E8M0) and nibbles;  y = K[q] * 2^(e - 128).
// nvfp4: blocks of 64, four unsigned E4M3 scales and nibbles;  y = K[q] * scale / 2, per 16.
// K doubles the E2M1 values: 0 1 2 3 4 6 8 12 and their negatives.
// nvfp4 sub-block s: byte 8s + j holds element 16s + j low and 16s + 8 + j high. Its per-tensor
// scale is not part of the block.
#pragma once

#include "formats/q4.h"

namespace kvant {

alignas(16) constexpr int8_t kFp4Values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

KVANT_INLINE float e8m0_half(uint8_t e) {
  return float_of(e < 2 ? 0x00200000u << e : uint32_t(e - 1) << 23);
}

// Half of an unsigned E4M3 number; 0x00 and 0x7f are zero. Bit 7 lies outside the format's domain.
KVANT_INLINE float ue4m3_half(uint8_t code) {
  const int exponent = (code >> 3) & 15, mantissa = code & 7;
  if (code == 0 || code == 0x7f) return 0.0f;
  if (exponent == 0) return float(mantissa) * 0x1p-10f;
  return float_of(uint32_t(exponent + 119) << 23 | uint32_t(mantissa) << 20);
}

// ggml's rounding: half up on the bit below the mantissa, and everything from 256 on becomes 448.
KVANT_INLINE uint8_t to_ue4m3(float x) {
  if (!(x > 0.0f)) return 0;
  if (x > 448.0f) x = 448.0f;
  const uint32_t bits = bits_of(x);
  int exponent = int(bits >> 23) - 120;
  if (exponent <= 0) {
    const int mantissa = int(x * 512.0f + 0.5f);
    return uint8_t(mantissa > 7 ? 7 : mantissa);
  }
  int mantissa = int(bits >> 20 & 7) + int(bits >> 19 & 1);
  if (mantissa > 7) {
    mantissa = 0;
    ++exponent;
  }
  return exponent >= 15 ? 0x7e : uint8_t(exponent << 3 | mantissa);
}

// The code whose value times d is nearest to x, the lower code in a tie.
template <class V>
struct Fp4Grid {
  using F = typename V::F;
  using I = typename V::I;
  F d, mid[7];
  bool far;

  // far: some |x| may exceed 2^10 d. Then the distances themselves are compared, as ggml does:
  // rounding can make them equal. Nearer than that the midpoints decide the same.
  KVANT_MEMBER Fp4Grid(F d_, bool far_) : d(d_), far(far_) {
    for (int k = 0; k < 7; ++k) mid[k] = d * V::splat(0.5f * float(kFp4Values[k] + kFp4Values[k + 1]));
  }

  KVANT_MEMBER I code(F x) const {
    const F a = V::abs(x);
    I n = V::splat_i(0);
    if (far) {
      F best = a;
      for (int k = 1; k < 8; ++k) {
        const F distance = V::abs(V::splat(float(kFp4Values[k])) * d - a);
        const auto nearer = distance < best;
        n = V::select(nearer, V::splat_i(k), n);
        best = V::select(nearer, distance, best);
      }
    } else {
      for (int k = 0; k < 7; ++k) n = V::select(a > mid[k], V::splat_i(k + 1), n);
    }
    const I sign = V::bits(x).template shr<31>().template shl<3>();
    return V::select(n == V::splat_i(0), n, n | sign);
  }
};

// The values plus 12.
alignas(16) constexpr uint8_t kFp4Unsigned[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

struct MXFP4 {
  static constexpr FormatInfo kInfo = {"mxfp4", 39, 32, 17, 32, true, false};
  static constexpr bool kHasMin = false;
  static constexpr const int8_t* kTable = kFp4Values;

  KVANT_INLINE void unpack(const uint8_t* block, UnpackedOf<MXFP4>& u) {
    u.scale[0] = e8m0_half(block[0]);
    unpack_nibbles32(block + 1, u.codes);
  }

  // The exponent 255 is NaN to every other reader.
  KVANT_INLINE bool valid(const uint8_t* block) { return block[0] != 0xff; }

  // floor(log2f(amax)) as glibc rounds it: log2f is correctly rounded up here for the last values
  // below a power of two, from 2^k (1 - ulps * 2^-24) on, where ulps grows with |k|.
  KVANT_INLINE int floor_log2(float amax) {
    int exponent = int(bits_of(amax) >> 23) - 127;
    uint32_t mantissa = bits_of(amax) & 0x7fffff;
    if (exponent == -127) {
      // Subnormal: shift the leading bit into place.
      const int shift = __builtin_clz(mantissa) - 8;
      mantissa = (mantissa << shift) & 0x7fffff;
      exponent -= shift - 1;
    }
    // log2(2^(k)(1 - t)) ~ k - t / ln 2 rounds to k when t / ln 2 is at most half the spacing of
    // floats just below k in magnitude.
    const int k = exponent + 1;
    if (k == 0 || mantissa < 0x800000 - 128) return exponent;
    const int magnitude = k < 0 ? -k : k;
    // Spacing of floats on the side of k where k - small lies: below k for k > 0, above |k| for k < 0.
    const int binade = 31 - __builtin_clz(uint32_t(magnitude));
    const bool power = (magnitude & (magnitude - 1)) == 0;
    const int spacing_exponent = binade - 23 - (k > 0 && power ? 1 : 0);
    const double limit = __builtin_ldexp(1.0, spacing_exponent - 1);
    const double t = double(0x800000 - mantissa) / double(0x1000000);
    return t * 1.4426950408889634 <= limit ? k : exponent;
  }

  static constexpr Plane kCodePlanes[] = {{1, 16, 4}}, kScalePlanes[] = {{0, 1, 1}};
  static constexpr int kCodeMax = 24, kCodeOffset = 12;
  static constexpr bool kWideScales = true;

  template <class V, class Out>
  KVANT_INLINE void expand(const PackedBlock<V>& in, Out&& out) {
    const auto e = in.scale_byte(0), one = V::splat_i(1);
    const auto bits = V::select(e == V::splat_i(0), V::splat_i(0x00200000), (e - one).template shl<23>());
    out.put_scale(0, V::from_bits(V::select(e == one, V::splat_i(0x00400000), bits)));
    expand_nibbles32<V>(in, 0, out, 0,
                        [](int, auto nibbles) KVANT_LAMBDA { return V::lookup_bytes(kFp4Unsigned, nibbles); });
  }

  template <class V, bool kWeighted>
  KVANT_INLINE void encode(const Batch<V>& in, uint8_t* out, int count) {
    using S = Search<V>;
    float m[16], d[16];
    uint8_t e[16];
    bool huge = false;
    V::store(m, S::largest(in.x, 32));
    for (int lane = 0; lane < V::kLanes; ++lane) {
      // Below 2^-125 the exponent is negative and wraps in eight bits, as the cast does on x86.
      e[lane] = m[lane] > 0.0f ? uint8_t(floor_log2(m[lane]) + 125) : 0;
      d[lane] = e8m0_half(e[lane]);
      // The largest floats round up to 2^128: the top values of their grid are infinite.
      huge = huge || e[lane] == 253;
    }
    const Fp4Grid<V> grid(V::load(d), huge);
    ByteTile<V, 32> codes;
    for (int i = 0; i < 32; i += 4) {
      codes.put(i / 4, grid.code(at<V>(in.x, i)), grid.code(at<V>(in.x, i + 1)), grid.code(at<V>(in.x, i + 2)),
                grid.code(at<V>(in.x, i + 3)));
    }
    ByteTile<V, 16> packed;
    pack_nibbles32<V>(codes, 0, packed, 0);
    packed.finish();
    for (int lane = 0; lane < count; ++lane, out += 17) {
      out[0] = e[lane];
      packed.read(lane, out + 1);
    }
  }
};

struct NVFP4 {
  static constexpr FormatInfo kInfo = {"nvfp4", 40, 64, 36, 16, true, false};
  static constexpr bool kHasMin = false;
  static constexpr const int8_t* kTable = kFp4Values;

  KVANT_INLINE void unpack(const uint8_t* block, UnpackedOf<NVFP4>& u) {
    for (int s = 0; s < 4; ++s) {
      u.scale[s] = ue4m3_half(block[s]);
      const uint64_t packed = load_u64(block + 4 + 8 * s);
      store_codes16(u.codes + 16 * s, join_words(packed, packed >> 4) & 15);
    }
  }

  // 0x7f is NaN to every other reader, and bit 7 lies outside the unsigned scale.
  KVANT_INLINE bool valid(const uint8_t* block) {
    return block[0] < 0x7f && block[1] < 0x7f && block[2] < 0x7f && block[3] < 0x7f;
  }

  static constexpr Plane kCodePlanes[] = {{4, 32, 4}}, kScalePlanes[] = {{0, 4, 4}};
  static constexpr int kCodeMax = 24, kCodeOffset = 12;

  template <class V, class Out>
  KVANT_INLINE void expand(const PackedBlock<V>& in, Out&& out) {
    each_byte<V>(in.scale_word(0), [&](int s, auto code) KVANT_LAMBDA {
      const auto seven = code & V::splat_i(127);
      const auto normal = V::from_bits(seven.template shl<20>() + V::splat_i(119 << 23));
      const auto tiny = V::to_f32(seven) * V::splat(0x1p-10f);
      const auto scale = V::select((seven & V::splat_i(0x78)) == V::splat_i(0), tiny, normal);
      out.put_scale(s, V::select(code == V::splat_i(0x7f), V::splat(0.0f), scale));
    });
    const auto low = splat_bytes<V>(15);
    each_place<V, 8>([&](int i) KVANT_LAMBDA {
      const auto w = in.code_word(i);
      const int k = 4 * (i / 2) + i % 2;
      out.put(k, V::lookup_bytes(kFp4Unsigned, w & low));
      out.put(k + 2, V::lookup_bytes(kFp4Unsigned, w.template shr<4>() & low));
    });
  }

  template <class V, bool kWeighted>
  KVANT_INLINE void encode(const Batch<V>& in, uint8_t* out, int count) {
    using S = Search<V>;
    using F = typename V::F;
    uint8_t scale[4][16];
    ByteTile<V, 64> codes;
    for (int s = 0; s < 4; ++s) {
      const float* x = from<V>(in.x, 16 * s);
      const F amax = S::largest(x, 16);
      float sixth[16], d[16];
      V::store(sixth, amax / V::splat(6.0f));
      for (int lane = 0; lane < V::kLanes; ++lane) {
        scale[s][lane] = to_ue4m3(sixth[lane]);
        d[lane] = ue4m3_half(scale[s][lane]);
      }
      const F step = V::load(d);
      const Fp4Grid<V> grid(step, V::any(amax > step * V::splat(1024.0f)));
      for (int i = 0; i < 16; i += 4) {
        codes.put(4 * s + i / 4, grid.code(at<V>(x, i)), grid.code(at<V>(x, i + 1)), grid.code(at<V>(x, i + 2)),
                  grid.code(at<V>(x, i + 3)));
      }
    }
    ByteTile<V, 32> packed;
    for (int k = 0; k < 8; ++k) {
      const int c = 4 * (k / 2) + k % 2;
      packed.set(k, codes.word(c) | codes.word(c + 2).template shl<4>());
    }
    packed.finish();
    for (int lane = 0; lane < count; ++lane, out += 36) {
      for (int s = 0; s < 4; ++s) out[s] = scale[s][lane];
      packed.read(lane, out + 4);
    }
  }
};

}  // namespace kvant
