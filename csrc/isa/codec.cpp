// The coding kernels of one ISA.
#include "isa/unit.h"
#include "kernels/make_codec.h"

namespace kvant {

extern const CodecKernels KVANT_TABLE(codec);
constinit const CodecKernels KVANT_TABLE(codec) = make_codec<KVANT_ISA_TAG>();

}  // namespace kvant
