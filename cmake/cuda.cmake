# The CUDA kernels: libprefiqs_cuda.so, a library of its own, loaded only beside a torch with CUDA.
# Included after torch_stable and warnings exist; reads torch_version and torch_cuda (empty for a CPU torch).
# Gives nvcc_version (empty where nothing is built), cuda_architectures and cuda_left_out (why nothing is built).
set(PREFIQS_CUDA AUTO CACHE STRING "CUDA kernels: AUTO (where torch has CUDA and there is an nvcc), ON (always) or OFF")
set_property(CACHE PREFIQS_CUDA PROPERTY STRINGS AUTO ON OFF)
if(NOT PREFIQS_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "expected PREFIQS_CUDA to be AUTO, ON or OFF, got '${PREFIQS_CUDA}'")
endif()

set(oldest_nvcc 12.8)
set(nvcc_version "")
set(cuda_left_out "")
if(PREFIQS_CUDA STREQUAL "OFF")
  set(cuda_left_out "PREFIQS_CUDA=OFF")
elseif(PREFIQS_CUDA STREQUAL "AUTO" AND NOT torch_cuda)
  set(cuda_left_out "torch ${torch_version}, which it was built beside, has no CUDA")
else()
  if(NOT CMAKE_CUDA_COMPILER)
    unset(CMAKE_CUDA_COMPILER CACHE) # look again: an earlier run may have found none
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --version OUTPUT_VARIABLE nvcc_says)
    string(REGEX MATCH "V([0-9.]+)" ignored "${nvcc_says}")
    if(CMAKE_MATCH_1 VERSION_LESS oldest_nvcc)
      set(cuda_left_out "nvcc ${CMAKE_MATCH_1} (${CMAKE_CUDA_COMPILER}) is older than ${oldest_nvcc}")
    else()
      set(nvcc_version ${CMAKE_MATCH_1})
    endif()
  else()
    set(cuda_left_out "no working nvcc was found: install the CUDA toolkit and name its nvcc by PATH or CUDACXX")
  endif()
  if(cuda_left_out AND PREFIQS_CUDA STREQUAL "ON")
    message(FATAL_ERROR "PREFIQS_CUDA=ON, but ${cuda_left_out}")
  endif()
endif()

if(NOT nvcc_version)
  message(STATUS "CUDA kernels: not built (${cuda_left_out})")
  return()
endif()

# A CPU torch says nothing about the CUDA of the torch beside which the library will be used.
string(REGEX MATCH "^[0-9]+" nvcc_major ${nvcc_version})
string(REGEX MATCH "^[0-9]+\\.[0-9]+" nvcc_release ${nvcc_version})
string(REGEX MATCH "^[0-9]+" torch_cuda_major "${torch_cuda}")
if(torch_cuda AND NOT nvcc_major EQUAL torch_cuda_major)
  message(FATAL_ERROR "expected an nvcc of CUDA ${torch_cuda_major}, which torch ${torch_version} was built with, got "
                      "${nvcc_version} (${CMAKE_CUDA_COMPILER}): name another one by CUDACXX, or build for the CPU "
                      "alone with PREFIQS_CUDA=OFF")
elseif(torch_cuda AND NOT nvcc_release VERSION_EQUAL torch_cuda)
  message(WARNING "nvcc ${nvcc_version} compiles the CUDA kernels; torch ${torch_version} was built with CUDA ${torch_cuda}")
endif()

# Machine code for Ampere (and Ada, which runs it) and Hopper; newer GPUs compile the PTX when they first load it.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real 90-virtual)
endif()
string(REGEX REPLACE "([0-9]+a?)-real" "sm_\\1" cuda_architectures "${CMAKE_CUDA_ARCHITECTURES}")
string(REGEX REPLACE "([0-9]+a?)-virtual" "compute_\\1" cuda_architectures "${cuda_architectures}")
string(REPLACE ";" " " cuda_architectures "${cuda_architectures}")
message(STATUS "CUDA kernels: ${cuda_architectures}, by nvcc ${nvcc_version} (${CMAKE_CUDA_COMPILER})")

set(CMAKE_CUDA_STANDARD 17) # CMake 3.25 knows no later one for nvcc 13
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

# Kernels see no torch header. A file of many templates takes gigabytes to compile: two at a time.
set_property(GLOBAL APPEND PROPERTY JOB_POOLS nvcc=2)
add_library(prefiqs_cuda_kernels OBJECT
  csrc/cuda/dense_norm.cu
  csrc/cuda/depthwise_conv.cu
  csrc/cuda/dispatch.cu
  csrc/cuda/distance.cu
  csrc/cuda/dual_conv_sm80_bfloat16.cu
  csrc/cuda/dual_conv_sm80_float16.cu
  csrc/cuda/sum_segments.cu)
target_include_directories(prefiqs_cuda_kernels PRIVATE csrc)
target_link_libraries(prefiqs_cuda_kernels PRIVATE warnings)
set_target_properties(prefiqs_cuda_kernels PROPERTIES JOB_POOL_COMPILE nvcc)

# wgmma and its kin exist for 9.0a alone; a build without it gets a stand-in that says so.
set(sm90_objects "")
if("90a-real" IN_LIST CMAKE_CUDA_ARCHITECTURES)
  add_library(prefiqs_cuda_sm90 OBJECT csrc/cuda/dual_conv_sm90_bfloat16.cu csrc/cuda/dual_conv_sm90_float16.cu)
  target_include_directories(prefiqs_cuda_sm90 PRIVATE csrc)
  target_link_libraries(prefiqs_cuda_sm90 PRIVATE warnings)
  set_target_properties(prefiqs_cuda_sm90 PROPERTIES JOB_POOL_COMPILE nvcc CUDA_ARCHITECTURES 90a-real)
  set(sm90_objects $<TARGET_OBJECTS:prefiqs_cuda_sm90>)
else()
  set(sm90_objects csrc/cuda/dual_conv_sm90_stub.cpp)
endif()

# The current stream is asked of libtorch_cuda.so, which a CPU torch lacks. A stand-in of that name, linked against and
# not installed, makes the loader look for the real one, which torch has loaded by then.
add_library(torch_cuda SHARED cmake/torch_cuda_stub.cpp)
set_target_properties(torch_cuda PROPERTIES LIBRARY_OUTPUT_DIRECTORY stand-in)

# The CUDA runtime is linked in and kept to ourselves: torch brings its own, perhaps of another release.
add_library(prefiqs_cuda SHARED csrc/cuda/ops.cpp $<TARGET_OBJECTS:prefiqs_cuda_kernels> ${sm90_objects})
target_include_directories(prefiqs_cuda PRIVATE csrc)
target_compile_definitions(prefiqs_cuda PRIVATE USE_CUDA) # torch's header declares the stream function only then
target_link_libraries(prefiqs_cuda PRIVATE torch_stable torch_cuda CUDA::cudart_static warnings)
target_link_options(prefiqs_cuda PRIVATE LINKER:--exclude-libs,ALL LINKER:-z,defs)
set_target_properties(prefiqs_cuda PROPERTIES LINKER_LANGUAGE CXX)

install(TARGETS prefiqs_cuda LIBRARY DESTINATION prefiqs_ext)
