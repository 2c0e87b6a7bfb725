// The list of formats: the only one. Kernels, the C table, Python and the tests read it.
#pragma once

#include "formats/floats.h"
#include "formats/fp4.h"
#include "formats/iq1.h"
#include "formats/iq2.h"
#include "formats/iq3.h"
#include "formats/iq4.h"
#include "formats/low_bit.h"
#include "formats/q2_k.h"
#include "formats/q3_k.h"
#include "formats/q4.h"
#include "formats/q4_k.h"
#include "formats/q5.h"
#include "formats/q6_k.h"
#include "formats/q8_0.h"
#include "formats/ternary.h"

namespace kvant {

template <class... Formats>
struct TypeList {
  static constexpr int size = sizeof...(Formats);
};

using FormatList = TypeList<F32, F16, BF16,                      //
                            Q4_0, Q4_1, Q5_0, Q5_1, Q8_0,        //
                            Q2_K, Q3_K, Q4_K, Q5_K, Q6_K,        //
                            IQ4_NL, IQ4_XS, MXFP4, NVFP4,        //
                            TQ1_0, TQ2_0, Q1_0, Q2_0,            //
                            IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S>;

constexpr int kFormatCount = FormatList::size;

template <class... Formats>
struct InfoTable {
  FormatInfo row[sizeof...(Formats)];
};

template <class... Formats>
constexpr InfoTable<Formats...> info_table(TypeList<Formats...>) {
  return {{Formats::kInfo...}};
}

constexpr auto kFormats = info_table(FormatList{});

}  // namespace kvant
