#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <iterator>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "errors.h"

namespace nb = nanobind;

namespace {

struct Block {
  void* p;
  size_t bytes;
};

// Results of middling size are kept when they are let go of, because the next layer wants as many: a fresh page
// costs more than what is computed into it. The GIL is the lock.
constexpr size_t kLeastKept = size_t(64) << 10, kMostKept = size_t(16) << 20, kMostKeptInAll = size_t(64) << 20;
std::multimap<size_t, void*>* kept = new std::multimap<size_t, void*>;
size_t kept_bytes = 0;

// What a block takes of the system: from a huge page on, whole ones.
size_t room(size_t bytes) {
  constexpr size_t kHuge = size_t(2) << 20;
  return bytes < kHuge ? bytes : (bytes + kHuge - 1) / kHuge * kHuge;
}

Block take(size_t bytes, bool zero) {
  if (bytes < kLeastKept || bytes > kMostKept) return {kvant_buffer_alloc(bytes), bytes};
  const auto it = kept->lower_bound(bytes);
  if (it == kept->end() || it->first > bytes + bytes / 4) {
    return {kvant_buffer_alloc(bytes), bytes};
  }
  const Block block = {it->second, it->first};
  kept->erase(it);
  kept_bytes -= room(block.bytes);
  if (zero) memset(block.p, 0, bytes);
  return block;
}

void give_back(const Block& block) {
  if (block.bytes < kLeastKept || block.bytes > kMostKept) return kvant_buffer_free(block.p, block.bytes);
  kept->emplace(block.bytes, block.p);
  kept_bytes += room(block.bytes);
  // The largest go first, so that none keeps the others out for good.
  while (kept_bytes > kMostKeptInAll) {
    const auto last = std::prev(kept->end());
    kept_bytes -= room(last->first);
    kvant_buffer_free(last->second, last->first);
    kept->erase(last);
  }
}

}  // namespace

void bind_runtime(nb::module_& m) {
  m.def("version", [] { return std::string(kvant_version()); });
  m.def("isas", [] {
    std::vector<std::tuple<std::string, bool>> all;
    for (int32_t i = 0; i < kvant_isa_count(); ++i) all.emplace_back(kvant_isa_name(i), kvant_isa_supported(i));
    return all;
  });
  m.def("isa_current", []() -> std::optional<std::string> {
    const char* name = kvant_isa_current();
    return name ? std::optional<std::string>(name) : std::nullopt;
  });
  m.def("isa_use", [](const std::string& name) { check(kvant_isa_use(name.c_str()), "isa.use"); }, nb::arg("name"));
  m.def("threads", [] { return kvant_threads(); });
  m.def("set_threads", [](int32_t n) { kvant_set_threads(n); }, nb::arg("n"));
  m.def(
      "allocate",
      [](size_t bytes, bool zero) {
        const Block block = take(bytes, zero);
        if (!block.p) throw std::bad_alloc();
        nb::capsule owner(new Block(block), [](void* o) noexcept {
          auto* given = static_cast<Block*>(o);
          give_back(*given);
          delete given;
        });
        return nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>(block.p, {bytes}, owner);
      },
      nb::arg("bytes"), nb::arg("zero"));
}
