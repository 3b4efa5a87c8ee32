# The CPU kernels, which include no torch header: what the operators are made of, and what tests/native runs by itself.
# Gives prefiqs_kernels.
include(${CMAKE_CURRENT_LIST_DIR}/warnings.cmake)

set(csrc ${CMAKE_CURRENT_LIST_DIR}/../csrc)
add_library(prefiqs_kernels OBJECT ${csrc}/cpu/dense_norm.cpp ${csrc}/cpu/dispatch.cpp ${csrc}/cpu/distance.cpp
  ${csrc}/cpu/workspace.cpp)
target_include_directories(prefiqs_kernels PUBLIC ${csrc})
target_link_libraries(prefiqs_kernels PRIVATE warnings)
set(own_roundings -ffp-contract=off) # of the portable code: see multiply_add in vec.h
set_source_files_properties(${csrc}/cpu/dense_norm.cpp ${csrc}/cpu/distance.cpp PROPERTIES
  COMPILE_OPTIONS ${own_roundings})

# One file per algorithm and instruction set, each with its own flags, chosen at run time.
set(isa_flags_scalar ${own_roundings})
set(isa_flags_avx2 -mavx2 -mfma)
set(isa_flags_avx512 -mavx512f -mavx512vl -mavx512dq -mavx512bw -mfma -mprefer-vector-width=512)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  list(APPEND isa_flags_avx512 -Wno-maybe-uninitialized -Wno-uninitialized) # its own header warns of itself: GCC bug 105593
endif()
set(isas scalar)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  list(APPEND isas avx2 avx512)
endif()
foreach(isa IN LISTS isas)
  foreach(algorithm gemm_conv linear_conv winograd_conv depthwise_conv)
    set(source ${csrc}/cpu/${algorithm}_${isa}.cpp)
    target_sources(prefiqs_kernels PRIVATE ${source})
    set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "-O3;${isa_flags_${isa}}")
  endforeach()
  string(TOUPPER ${isa} isa_upper)
  target_compile_definitions(prefiqs_kernels PRIVATE PREFIQS_HAS_${isa_upper})
endforeach()

# The kernels that multiply bfloat16 numbers, and the same with those instructions in plain C++.
set(isa_flags_emulated ${isa_flags_scalar})
set(isa_flags_avx512bf16 ${isa_flags_avx512} -mavx512bf16)
set(isa_flags_amx ${isa_flags_avx512bf16} -mamx-tile -mamx-bf16)
set(bfloat16_kernels dot_conv_emulated amx_conv_emulated amx_linear_emulated)
if(avx512 IN_LIST isas)
  list(APPEND bfloat16_kernels dot_conv_avx512bf16)
  if(CMAKE_SYSTEM_NAME STREQUAL "Linux") # whose system call hands out the tiles
    list(APPEND bfloat16_kernels amx_conv_amx amx_linear_amx)
    target_compile_definitions(prefiqs_kernels PRIVATE PREFIQS_HAS_AMX)
  endif()
endif()
foreach(kernel IN LISTS bfloat16_kernels)
  string(REGEX REPLACE ".*_" "" isa ${kernel})
  target_sources(prefiqs_kernels PRIVATE ${csrc}/cpu/${kernel}.cpp)
  set_source_files_properties(${csrc}/cpu/${kernel}.cpp PROPERTIES COMPILE_OPTIONS "-O3;${isa_flags_${isa}}")
endforeach()
