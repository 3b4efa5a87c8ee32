# The operators' libraries: libprefiqs_ops.so, and libprefiqs_cuda.so where there is an nvcc.
# Gives the target prefiqs_ops; reads Python_EXECUTABLE.

# torch: found, never fetched. First the environment being installed into (-E hides pip's build overlay), then the build's own.
foreach(python_flags "-E" "-B")
  execute_process(
    COMMAND ${Python_EXECUTABLE} ${python_flags} ${CMAKE_CURRENT_LIST_DIR}/find_torch.py
    OUTPUT_VARIABLE torch_json
    RESULT_VARIABLE torch_missing
    ERROR_QUIET)
  if(NOT torch_missing)
    break()
  endif()
endforeach()
if(torch_missing)
  message(FATAL_ERROR "no torch found: install torch >= 2.10 first (pip install torch), then build again")
endif()
string(JSON torch_root GET ${torch_json} root)
string(JSON torch_version GET ${torch_json} version)
string(JSON torch_cuda GET ${torch_json} cuda)
string(REGEX MATCH "^[0-9]+\\.[0-9]+" torch_release ${torch_version})
if(torch_release VERSION_LESS 2.10)
  message(FATAL_ERROR "torch ${torch_version} in ${torch_root} is too old: prefiqs_ext needs torch >= 2.10")
endif()
message(STATUS "torch ${torch_version} in ${torch_root}")

# The stable ABI of torch 2.10: one build runs on every later torch, and its headers compile in a second.
add_library(torch_stable INTERFACE)
target_include_directories(torch_stable SYSTEM INTERFACE ${torch_root}/include)
target_compile_definitions(torch_stable INTERFACE TORCH_TARGET_VERSION=0x020a000000000000)
target_link_libraries(torch_stable INTERFACE ${torch_root}/lib/libtorch_cpu.so)

include(cmake/cpu.cmake)

# The operators, in a library of their own: tied to no Python version and, by the stable ABI, to no torch release.
add_library(prefiqs_ops SHARED csrc/schema.cpp csrc/build.cpp csrc/cpu/ops.cpp)
target_link_libraries(prefiqs_ops PRIVATE prefiqs_kernels torch_stable warnings)
install(TARGETS prefiqs_ops LIBRARY DESTINATION prefiqs_ext)

include(cmake/cuda.cmake)
target_compile_definitions(prefiqs_ops PRIVATE
  PREFIQS_BUILD_TORCH="${torch_version}"
  PREFIQS_NVCC="${nvcc_version}"
  PREFIQS_CUDA_ARCHITECTURES="${cuda_architectures}"
  PREFIQS_CUDA_LEFT_OUT="${cuda_left_out}")
