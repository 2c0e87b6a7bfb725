#include "kv/pages.h"

#include <algorithm>
#include <new>

#include "runtime/buffer.h"

namespace kvant {
namespace {

// A slab holds as many pages as there are already, within these bounds.
constexpr int64_t kFewestPages = 16, kMostSlabBytes = int64_t(32) << 20;

}  // namespace

PagePool::~PagePool() {
  for (auto& [layout, size] : sizes_) {
    for (const PageSize::Slab& slab : size.slabs) {
      free_buffer(slab.memory, slab.bytes);
      delete[] slab.pages;
    }
  }
}

bool PagePool::grow(PageSize& size) {
  int64_t count = std::max(size.made, kFewestPages);
  count = std::max(std::min(count, kMostSlabBytes / size.bytes), int64_t(1));
  const size_t bytes = size_t(count * size.bytes);
  auto* pages = new (std::nothrow) Page[size_t(count)];
  auto* memory = static_cast<uint8_t*>(allocate_buffer(bytes));
  if (!pages || !memory) {
    free_buffer(memory, bytes);
    delete[] pages;
    return false;
  }
  try {
    size.free.reserve(size_t(size.made + count));
    size.slabs.push_back({memory, bytes, pages});
  } catch (const std::bad_alloc&) {
    free_buffer(memory, bytes);
    delete[] pages;
    return false;
  }
  // The last is taken first: pages lie one behind the other in the order they are taken.
  for (int64_t i = count - 1; i >= 0; --i) {
    pages[i].data = memory + i * size.bytes;
    pages[i].size = &size;
    size.free.push_back(&pages[i]);
  }
  size.made += count;
  reserved_ += int64_t(bytes);
  return true;
}

PagePool::Want PagePool::take(const PageLayout& layout, Page*& page) {
  const std::lock_guard lock(mutex_);
  const int64_t bytes = layout[0];
  if (budget_ > 0 && used_ + bytes > budget_) return Want::over_budget;
  PageSize& size = sizes_[layout];
  size.bytes = bytes;
  if (size.free.empty() && !grow(size)) return Want::no_memory;
  page = size.free.back();
  size.free.pop_back();
  page->references.store(1, std::memory_order_relaxed);
  used_ += bytes;
  ++pages_;
  return Want::page;
}

Page* PagePool::attach(const uint8_t* data) {
  return new (std::nothrow) Page{const_cast<uint8_t*>(data), nullptr, 1};
}

void PagePool::drop(Page* page) {
  if (page->references.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  if (!page->size) {
    delete page;
    return;
  }
  const std::lock_guard lock(mutex_);
  // There is room: as many places were reserved as there are pages.
  page->size->free.push_back(page);
  used_ -= page->size->bytes;
  --pages_;
}

}  // namespace kvant
