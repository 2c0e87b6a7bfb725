# The table of ISAs: name -> tag in csrc/simd/<name>.h -> processor -> compile flags. Run-time
# detection is in csrc/isa/detect.cpp. Each ISA compiles every unit of csrc/isa/ into an object
# library of its own, without link-time optimization, so that no instruction of it can move into code
# that runs everywhere.
set(KVANT_ISA_UNITS attend codec matmul ops probe)
# An ISA that is another one but for products compiles those only; select.cpp names the other.
set(KVANT_ISA_UNITS_neon_i8mm matmul)
set(KVANT_ISA_OPTIMIZE "" CACHE STRING "Optimization of these units instead of their own, for builds that only test")

function(kvant_add_isas target)
  set(table
    # name|tag|processor|flags; CONTRIBUTING.md has the other steps to a new one
    "scalar|Scalar|any|-O2 -fno-tree-vectorize -fno-tree-slp-vectorize"
    "avx2|Avx2|x86_64|-O3 -mavx2 -mfma -mf16c"
    "avx512vnni|Avx512Vnni|x86_64|-O3 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mfma -mf16c -mprefer-vector-width=512"
    "neon_dotprod|NeonDotprod|aarch64|-O3 -march=armv8.2-a+dotprod+fp16"
    "neon_i8mm|NeonI8mm|aarch64|-O3 -march=armv8.2-a+dotprod+fp16+i8mm")

  string(TOLOWER "${CMAKE_SYSTEM_PROCESSOR}" processor)
  if(processor MATCHES "amd64|x86_64")
    set(processor x86_64)
  elseif(processor MATCHES "arm64|aarch64")
    set(processor aarch64)
  endif()

  foreach(row IN LISTS table)
    string(REPLACE "|" ";" row "${row}")
    list(GET row 0 name)
    list(GET row 1 tag)
    list(GET row 2 wanted)
    list(GET row 3 flags)
    if(NOT wanted STREQUAL "any" AND NOT wanted STREQUAL processor)
      continue()
    endif()
    separate_arguments(flags)
    if(KVANT_ISA_OPTIMIZE)
      list(TRANSFORM flags REPLACE "^-O.$" "${KVANT_ISA_OPTIMIZE}")
    elseif(KVANT_SANITIZE)
      # Checks in line make the loops so large that they compile for very long: here they are calls.
      list(TRANSFORM flags REPLACE "^-O.$" "-O1")
      if(NOT name STREQUAL "scalar")
        list(APPEND flags -fno-sanitize=undefined)
      endif()
      if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
        list(APPEND flags "SHELL:--param asan-instrumentation-with-call-threshold=0" "SHELL:--param asan-stack=0")
      endif()
    endif()
    set(units ${KVANT_ISA_UNITS})
    if(DEFINED KVANT_ISA_UNITS_${name})
      set(units ${KVANT_ISA_UNITS_${name}})
    endif()
    list(TRANSFORM units REPLACE "(.+)" "csrc/isa/\\1.cpp")
    add_library(kvant_isa_${name} OBJECT ${units})
    target_include_directories(kvant_isa_${name} PRIVATE csrc)
    target_compile_definitions(kvant_isa_${name} PRIVATE
      KVANT_ISA_NAME=${name} KVANT_ISA_TAG=${tag} KVANT_ISA_HEADER="simd/${name}.h")
    target_compile_options(kvant_isa_${name} PRIVATE
      ${KVANT_WARNINGS} -ffp-contract=off -fno-strict-aliasing -fno-exceptions -fno-rtti -fno-lto ${flags})
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      # gcc 12's own AVX-512 headers trip them.
      target_compile_options(kvant_isa_${name} PRIVATE -Wno-maybe-uninitialized -Wno-uninitialized)
      if(wanted STREQUAL "aarch64")
        # gcc would move loads so far ahead that sums no longer fit in registers.
        target_compile_options(kvant_isa_${name} PRIVATE -fno-schedule-insns)
      endif()
    endif()
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:kvant_isa_${name}>)
  endforeach()
endfunction()
