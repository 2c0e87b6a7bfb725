// Native calls recorded once and made again as one, so that a step of a decoder needs Python once.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "errors.h"

class Program {
 public:
  struct Entry {
    std::string function;
    std::function<int32_t()> call;
    double seconds = 0;
  };

  // The program that this thread is recording, or null.
  static Program*& recording() {
    thread_local Program* program = nullptr;
    return program;
  }

  template <class Call>
  void add(const char* function, Call&& call) {
    entries_.push_back({function, std::forward<Call>(call)});
  }

  // Makes all calls in order; stops at the first that fails, as the exception that it is.
  void run(bool timed) {
    int32_t code = KVANT_OK;
    size_t done = 0;
    {
      nanobind::gil_scoped_release release;
      for (; done < entries_.size() && code == KVANT_OK; ++done) code = timed ? time(entries_[done]) : entries_[done].call();
    }
    if (code != KVANT_OK) check(code, entries_[done - 1].function.c_str());
  }

  const std::vector<Entry>& entries() const { return entries_; }

 private:
  static int32_t time(Entry& entry) {
    const auto began = std::chrono::steady_clock::now();
    const int32_t code = entry.call();
    entry.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    return code;
  }

  std::vector<Entry> entries_;
};

// `run`, and the call is noted where this thread records. It must own every array that it uses, which is why
// addresses are taken within it.
template <class Call>
void run_recorded(const char* function, Call call) {
  run(function, call);
  if (Program* program = Program::recording()) program->add(function, std::move(call));
}
