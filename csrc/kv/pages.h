// Pages of a cache: counted references, taken from slabs, all of them under one budget of bytes.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

namespace kvant {

struct PageSize;

// What lies where in a page: its bytes, the codecs and sizes of keys and values.
using PageLayout = std::array<int64_t, 5>;

struct Page {
  uint8_t* data;
  PageSize* size;  // null of memory that is not the pool's
  std::atomic<int32_t> references;
};

// All pages of one layout: what is left in a page that is taken again must be scales where scales are.
struct PageSize {
  struct Slab {
    void* memory;
    size_t bytes;
    Page* pages;
  };
  int64_t bytes;
  std::vector<Slab> slabs;
  std::vector<Page*> free;
  int64_t made = 0;
};

class PagePool {
 public:
  // budget: bytes of all pages in use; 0 for no bound.
  explicit PagePool(int64_t budget) : budget_(budget) {}
  ~PagePool();
  PagePool(const PagePool&) = delete;

  enum class Want { page, over_budget, no_memory };
  // A page with one reference, its contents those of any page before: scales that are finite, and zero at first.
  Want take(const PageLayout& layout, Page*& page);
  // A page over memory that the caller keeps and nobody writes to; null when there is no memory. It counts for nothing.
  Page* attach(const uint8_t* data);
  void hold(Page* page) { page->references.fetch_add(1, std::memory_order_relaxed); }
  void drop(Page* page);

  int64_t used() const { return used_.load(); }
  int64_t reserved() const { return reserved_.load(); }
  int64_t pages() const { return pages_.load(); }

 private:
  bool grow(PageSize& size);

  const int64_t budget_;
  std::mutex mutex_;
  std::map<PageLayout, PageSize> sizes_;
  std::atomic<int64_t> used_{0}, reserved_{0}, pages_{0};
};

}  // namespace kvant
