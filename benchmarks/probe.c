// What memory gives without any decoding: the yardsticks of the reports. Built on the spot with the
// system's C compiler and loaded through cffi.
#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>

__attribute__((target("avx512f"))) static void store_64(float* p, size_t n, float value) {
  const __m512 v = _mm512_set1_ps(value);
  for (size_t i = 0; i < n; i += 16) _mm512_stream_ps(p + i, v);
}

__attribute__((target("avx2"))) static void store_32(float* p, size_t n, float value) {
  const __m256 v = _mm256_set1_ps(value);
  for (size_t i = 0; i < n; i += 8) _mm256_stream_ps(p + i, v);
}

static void store_16(float* p, size_t n, float value) {
  const __m128 v = _mm_set1_ps(value);
  for (size_t i = 0; i < n; i += 4) _mm_stream_ps(p + i, v);
}

static void store_around(float* p, size_t n, float value) {
  if (__builtin_cpu_supports("avx512f")) {
    store_64(p, n, value);
  } else if (__builtin_cpu_supports("avx2")) {
    store_32(p, n, value);
  } else {
    store_16(p, n, value);
  }
}

int probe_streams(void) { return 1; }
#else
static void store_around(float* p, size_t n, float value) {
  for (size_t i = 0; i < n; ++i) p[i] = value;
}

int probe_streams(void) { return 0; }
#endif

// Fills n floats, a multiple of 16 at a 64-byte boundary, with stores that pass the caches by.
void probe_stream(float* p, size_t n, float value) {
  store_around(p, n, value);
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// Reads n words, a multiple of 16; independent sums keep many loads in flight.
uint64_t probe_read(const uint64_t* p, size_t n) {
  uint64_t sums[16] = {0}, all = 0;
  for (size_t i = 0; i < n; i += 16) {
    for (size_t j = 0; j < 16; ++j) sums[j] += p[i + j];
  }
  for (size_t j = 0; j < 16; ++j) all += sums[j];
  return all;
}

// The memory traffic of a decoder without the decoding: writes n floats as probe_stream does, and
// reads `bytes` bytes evenly in between.
uint64_t probe_stream_reading(float* p, size_t n, const uint64_t* source, size_t bytes) {
  const size_t step = 256;
  const double lines_per_step = (double)bytes / 64 / ((double)n / step);
  uint64_t all = 0;
  size_t line = 0;
  for (size_t i = 0; i + step <= n; i += step) {
    const size_t until = (size_t)((double)(i / step + 1) * lines_per_step);
    for (; line < until; ++line) {
      __builtin_prefetch(source + (line + 32) * 8);
      all += source[line * 8];
    }
    store_around(p + i, step, 0.0f);
  }
  return all;
}

// A chain of 16 n additions, each waiting for the one before: one clock tick each.
uint64_t probe_ticks(size_t n) {
  uint64_t x = 0;
  for (size_t i = 0; i < n; ++i) {
#define STEP __asm__ volatile("" : "+r"(x)); x += i;
    STEP STEP STEP STEP STEP STEP STEP STEP STEP STEP STEP STEP STEP STEP STEP STEP
  }
  return x;
}
