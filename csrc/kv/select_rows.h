// One head's tokens on their way to other places of its pages.
#pragma once

#include <algorithm>
#include <vector>

#include "kv/rows.h"

namespace kvant {

// Where the tokens of a head lie, and where those that are kept go. A page may be both: tokens move forward only, so
// that what is overwritten has been moved.
struct KvMove {
  const KvLayer* layer;
  const KvSelection* what;
  HeadPages* own;
  HeadPages next;
  int64_t same = 0;  // first tokens that stay what and where they are
  bool moves = false;
  bool sinks_stay = false;
  std::vector<Page*> taken;

  bool turned(int64_t i) const { return what->turn && i >= what->turn_begin && i < what->turn_end; }
  // Tokens from `i` on, before `until`, that are turned all, or none.
  int64_t alike(int64_t i, int64_t until) const;
  int64_t sinks() const { return next.sinks.empty() || sinks_stay ? 0 : std::min(layer->sink, next.length); }
  int64_t first_exact() const { return next.exact.empty() ? next.length : next.first_exact * kPageTokens; }
  // Tokens whose exact copies are made anew.
  int64_t exact_rows() const { return sinks() + next.length - first_exact(); }
};

// Scratch and loops of one thread.
class KvRowMover {
 public:
  explicit KvRowMover(const Kernels& kernels) : kernels_(kernels) {}

  // Room for a move.
  void place(Carver& carver, const KvMove& move);
  // trial: finds out whether all numbers can be stored, and changes nothing. False if one cannot.
  bool run(const KvMove& move, bool trial);

 private:
  bool floats(const KvMove& move, int side, KvCoder& coder, int64_t i, int64_t count);
  bool turn(const KvMove& move, KvCoder& coder, int64_t count);
  // Exact copies as floats; codes; exact copies into their pages.
  bool stage(const KvMove& move, int side, KvCoder& coder, bool trial);
  bool body(const KvMove& move, int side, KvCoder& coder, bool trial);
  bool put_exact(const KvMove& move, int side, KvCoder& coder, bool trial);
  const uint8_t* exact_page(const KvMove& move, int side, int64_t token) const;

  const Kernels& kernels_;
  uint8_t* coder_memory_ = nullptr;
  float *raw_ = nullptr, *cos_ = nullptr, *sin_ = nullptr, *staged_[2] = {};
  double* frequencies_ = nullptr;
  uint8_t* page_ = nullptr;
};

}  // namespace kvant
