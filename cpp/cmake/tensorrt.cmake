# What the TensorRT backend is compiled with: the headers of TensorRT and of the CUDA runtime.  Both libraries are
# loaded at run time.

set(TENSORRT_ROOT "" CACHE PATH "A TensorRT SDK: include/ is taken from there")

find_path(TRTPRUNE_TENSORRT_INCLUDE NvInferRuntime.h HINTS "${TENSORRT_ROOT}/include"
          "${TRTPRUNE_DEPENDENCIES}/tensorrt-headers/kernel_lens/include/tensorrt")
find_program(nvcc_program nvcc)
if(nvcc_program)
  get_filename_component(toolkit "${nvcc_program}" REALPATH)
  get_filename_component(toolkit "${toolkit}/../.." ABSOLUTE)
endif()
file(GLOB toolkits "/usr/local/cuda*")
set(cuda_places "${toolkit}/include" "${TRTPRUNE_DEPENDENCIES}/cuda/nvidia/cu13/include")
foreach(folder ${toolkits})
  list(APPEND cuda_places "${folder}/include" "${folder}/targets/x86_64-linux/include")
endforeach()
find_path(TRTPRUNE_CUDA_INCLUDE cuda_runtime_api.h HINTS ${cuda_places})

if(TRTPRUNE_FETCH AND (NOT TRTPRUNE_TENSORRT_INCLUDE OR NOT TRTPRUNE_CUDA_INCLUDE))
  find_package(Python3 REQUIRED COMPONENTS Interpreter)
  if(NOT TRTPRUNE_CUDA_INCLUDE)
    set(with_cuda --nvcc)
  endif()
  execute_process(
    COMMAND "${Python3_EXECUTABLE}" "${CMAKE_CURRENT_SOURCE_DIR}/../plugins/fetch_dependencies.py"
            "${TRTPRUNE_DEPENDENCIES}" ${with_cuda}
    RESULT_VARIABLE failed OUTPUT_QUIET)
  if(failed)
    message(FATAL_ERROR "plugins/fetch_dependencies.py could not download the headers of TensorRT or CUDA")
  endif()
  find_path(TRTPRUNE_TENSORRT_INCLUDE NvInferRuntime.h
            HINTS "${TRTPRUNE_DEPENDENCIES}/tensorrt-headers/kernel_lens/include/tensorrt")
  find_path(TRTPRUNE_CUDA_INCLUDE cuda_runtime_api.h HINTS ${cuda_places})
endif()
if(NOT TRTPRUNE_TENSORRT_INCLUDE OR NOT TRTPRUNE_CUDA_INCLUDE)
  message(FATAL_ERROR
    "TRTPRUNE_TENSORRT needs the headers of TensorRT 10 (-DTENSORRT_ROOT=SDK) and of CUDA 12 or 13 "
    "(-DTRTPRUNE_CUDA_INCLUDE=FOLDER with cuda_runtime_api.h)")
endif()
