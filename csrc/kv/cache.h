// Caches of keys and values: what layers are like, and sequences of pages that grow, are shared, cut and attended
// over. Arguments are checked by the caller (capi) once.
#pragma once

#include <algorithm>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "base/status.h"
#include "kernels/attend_kernels.h"
#include "kv/pages.h"

namespace kvant {

// Exact transforms of keys, or of values, before they are coded: (x - center) / equalize, then the Hadamard
// transform of blocks with signs. Empty where there is none.
struct KvTransform {
  int32_t rotate = 0;                            // block, or 0
  std::vector<float> signs;                      // [rotate]
  std::vector<float> center, equalize, shrink;   // [heads][dim]; shrink = 1 / equalize
};

constexpr int64_t kNoWindow = int64_t(1) << 60;

struct KvLayer {
  int32_t heads, dim, value_dim;
  KvCodec codec[2];  // of keys, of values
  KvRule rule[2];
  int64_t window;      // of keys a token sees; kNoWindow for all
  int64_t chunk;       // a token sees keys of its own chunk of so many; kNoWindow for all
  int64_t sink, tail;  // of keys that are seen exactly
  KvTransform transform[2];
  bool fine;           // queries and weights in sixteen bits rather than in eight
  bool view;           // values are the first value_dim elements of keys, and nothing is stored of them

  // The first key that one sees who sees none from `end` on.
  int64_t first_seen(int64_t end) const { return std::max({end - window, (end - 1) / chunk * chunk, int64_t(0)}); }
  bool sees_all() const { return window == kNoWindow && chunk == kNoWindow; }
  int sides() const { return view ? 1 : 2; }
  bool quantized() const { return int(codec[0]) >= kFirstQuantized || int(codec[1]) >= kFirstQuantized; }
  // Tokens whose keys are coded together, channel by channel; 1 for keys that are coded one by one.
  int32_t key_group() const { return info(0).key_group; }
  // Whether the latest tokens are kept exactly beside their codes.
  bool near() const { return quantized() && (tail > 0 || key_group() > 1); }
  const KvCodecInfo& info(int side) const { return kKvCodecs.row[int(codec[side])]; }
  int32_t size(int side) const { return side ? value_dim : dim; }
  int64_t side_bytes(int side) const { return side >= sides() ? 0 : (kv_page_bytes(info(side), size(side), side) + 63) / 64 * 64; }
  int64_t page_bytes() const { return side_bytes(0) + side_bytes(1); }
  PageLayout layout() const { return layout(page_bytes(), codec[0], codec[1]); }
  PageLayout exact_layout() const { return layout(exact_bytes(), KvCodec::f16, KvCodec::f16); }
  int64_t exact_offset() const { return (kv_page_bytes(kKvCodecs.row[int(KvCodec::f16)], dim, false) + 63) / 64 * 64; }
  int64_t exact_bytes() const {
    return exact_offset() + (view ? 0 : (kv_page_bytes(kKvCodecs.row[int(KvCodec::f16)], value_dim, true) + 63) / 64 * 64);
  }

 private:
  PageLayout layout(int64_t bytes, KvCodec k, KvCodec v) const {
    return {bytes, int64_t(k), view ? -1 : int64_t(v), dim, view ? 0 : value_dim};
  }
};

// Pages that so many tokens take.
inline int64_t pages_of(int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }
// Tokens that may be taken back and are still seen exactly, or in a window, as before.
constexpr int64_t kRollback = 64;

// The pages of one head of one layer, numbered by the tokens they hold.
struct HeadPages {
  int64_t length = 0;       // tokens that it holds
  int64_t missing = 0;      // tokens that were evicted: as much later is the position of one that came afterwards
  int64_t settled = 0;      // tokens that were there when the last was evicted, their positions unknown
  int64_t first = 0;        // page of body[0]
  std::vector<Page*> body;
  int64_t first_exact = 0;  // page of exact[0]
  std::vector<Page*> exact, sinks;

  int64_t end() const { return length + missing; }  // the next token's position
  // Whether tokens from a position on are there, one behind the other.
  bool has(int64_t position) const { return missing == 0 || position >= settled + missing; }
};

// Floats [tokens][heads][dim] of some type, strides in elements.
struct KvInput {
  const void* x;
  Float type;
  int64_t token_stride, head_stride;
};

struct KvQuery {
  const float* q;
  int64_t token_stride, head_stride;
  int64_t tokens;
  int32_t heads;
  float scale, cap;
  bool causal, exact;
  const float* sinks;  // one for each head, or null
  float* out;          // [tokens][heads][value_dim]
  float* lse;          // [tokens][heads], or null
};

// Keys turned by the angles of `by` positions, as kvant_rope has them.
struct KvTurn {
  int64_t by;
  double theta, scale;
  const float* factors;  // [rotary / 2], or null
  int32_t rotary;
  bool interleaved;
};

// What is kept of one head of `held` tokens: `count` ascending ones, of which numbers turn_begin .. turn_end - 1 have their keys turned.
struct KvSelection {
  int32_t layer, head;
  int64_t held;
  const int64_t* kept;
  int64_t count;
  const KvTurn* turn;  // or null
  int64_t turn_begin, turn_end;
};

class KvSequence;

// Of a call for several sequences what is of one: so many tokens, behind those of the parts before.
struct KvPart {
  KvSequence* sequence;
  int64_t tokens;
};

class KvCache {
 public:
  KvCache(std::vector<KvLayer> layers, int64_t budget) : layers_(std::move(layers)), pool_(budget) {}
  const std::vector<KvLayer>& layers() const { return layers_; }
  PagePool& pool() { return pool_; }

 private:
  const std::vector<KvLayer> layers_;
  PagePool pool_;
};

// Keys and values of one sequence. Calls of several threads are served one after the other.
class KvSequence {
 public:
  explicit KvSequence(std::shared_ptr<KvCache> cache);
  ~KvSequence();
  KvSequence(const KvSequence&) = delete;

  const std::shared_ptr<KvCache>& cache() const { return cache_; }
  // Tokens that were appended to all layers, or to one, and not taken back; those that a head holds.
  int64_t length() const;
  int64_t length(int layer) const;
  int64_t held(int layer, int head) const;

  // Of several sequences of a cache, with what each alone would give. All or none: which gets the part that is refused, bad
  // the token and head of the first number that cannot be stored; either may be null, and is else left as it is.
  static Status append(std::span<const KvPart> parts, int layer, const KvInput& k, const KvInput& v, int limit,
                       int64_t* which, int64_t* bad);
  static Status attend(std::span<const KvPart> parts, int layer, const KvQuery& query, int limit, int64_t* which);
  Status truncate(int64_t length);
  Status fork(std::unique_ptr<KvSequence>& out) const;
  // Each head is left with what is kept of it; all are, or none. evict: tokens that come later keep their positions,
  // else those behind a gap move forward (select.cpp).
  Status select(const KvSelection* heads, int64_t count, bool evict, int limit);

  // Tokens first .. first + tokens - 1 of a head, as rows of a file or, where bytes is null, as floats with all
  // transforms taken back; and tokens appended from such rows [tokens][heads].
  Status read(int layer, int side, int head, int64_t first, int64_t tokens, uint8_t* bytes, float* floats) const;
  Status write(int layer, int64_t tokens, const uint8_t* k, const uint8_t* v);

  // All pages of a head as they are (state.cpp), and such pages in a head without tokens: copied, or left where they
  // lie, aligned to 64 bytes, as long as the cache lives.
  int64_t state_bytes(int layer, int head) const;
  Status save(int layer, int head, uint8_t* out, int64_t bytes) const;
  Status load(int layer, int head, const uint8_t* state, int64_t bytes, bool in_place);

 private:
  class Growth;
  class Copies;
  // Of all sequences that a call has to do with, in the order of their addresses: two calls never wait for each other.
  class Locks {
   public:
    explicit Locks(std::span<const KvPart> parts);
    size_t count() const { return locks_.size(); }

   private:
    std::vector<std::unique_lock<std::mutex>> locks_;
  };
  friend class Attention;
  friend class Selecting;

  template <class Fill>
  static Status grow(std::span<const KvPart> parts, int layer, int limit, int64_t* which, int64_t* bad, Fill&& fill);
  HeadPages& pages(int layer, int head) { return pages_[size_t(first_[size_t(layer)] + head)]; }
  const HeadPages& pages(int layer, int head) const { return pages_[size_t(first_[size_t(layer)] + head)]; }
  void cut(const KvLayer& layer, HeadPages& pages, int64_t length, Page* copies = nullptr);
  void let_go(const KvLayer& layer, HeadPages& pages, int64_t length);

  std::shared_ptr<KvCache> cache_;
  std::vector<int64_t> first_;  // of a layer in pages_
  std::vector<HeadPages> pages_;
  mutable std::mutex mutex_;
};

}  // namespace kvant
