// Which kernels run: the list of ISAs in this build, best first, and the one in use.
#pragma once

#include "base/status.h"
#include "kernels/kernels.h"

namespace kvant {

int isa_count();
// Null when index is out of range.
const char* isa_name(int index);
bool isa_supported(int index);

// The kernels in use. The first call honours KVANT_ISA; a name that is unknown or that this
// machine lacks is an error, never a silent fallback.
Status current_kernels(const Kernels*& kernels);
Status use_isa(const char* name);

}  // namespace kvant
