# The table of ISAs: name -> processor -> compile flags. Run-time detection is in csrc/isa/detect.cpp.
# Each ISA is one object library of one file, built without link-time optimization so that no
# instruction of it can move into code that runs everywhere.
function(kvant_add_isas target)
  set(table
    # name          processor        flags
    "scalar|any|-O2 -fno-tree-vectorize -fno-tree-slp-vectorize"
    "avx2|x86_64|-O3 -mavx2 -mfma -mf16c"
    "avx512vnni|x86_64|-O3 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mfma -mf16c -mprefer-vector-width=512"
    "neon_dotprod|aarch64|-O3 -march=armv8.2-a+dotprod+fp16")

  string(TOLOWER "${CMAKE_SYSTEM_PROCESSOR}" processor)
  if(processor MATCHES "amd64|x86_64")
    set(processor x86_64)
  elseif(processor MATCHES "arm64|aarch64")
    set(processor aarch64)
  endif()

  foreach(row IN LISTS table)
    string(REPLACE "|" ";" row "${row}")
    list(GET row 0 name)
    list(GET row 1 wanted)
    list(GET row 2 flags)
    if(NOT wanted STREQUAL "any" AND NOT wanted STREQUAL processor)
      continue()
    endif()
    separate_arguments(flags)
    add_library(kvant_isa_${name} OBJECT csrc/isa/${name}.cpp)
    target_include_directories(kvant_isa_${name} PRIVATE csrc)
    target_compile_options(kvant_isa_${name} PRIVATE
      ${KVANT_WARNINGS} -ffp-contract=off -fno-strict-aliasing -fno-exceptions -fno-rtti -fno-lto ${flags})
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      # gcc 12's own AVX-512 headers trip them.
      target_compile_options(kvant_isa_${name} PRIVATE -Wno-maybe-uninitialized -Wno-uninitialized)
    endif()
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:kvant_isa_${name}>)
  endforeach()
endfunction()
