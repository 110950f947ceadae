# The libraries that trtprune is made of.  With TRTPRUNE_FETCH, what this machine lacks is downloaded into
# TRTPRUNE_DEPENDENCIES; without it, what is missing is an error that names its Debian package.

set(TRTPRUNE_DEPENDENCIES "${CMAKE_CURRENT_SOURCE_DIR}/../build/dependencies" CACHE PATH
    "Where fetch_dependencies.py puts what it downloads")

# Runs fetch_dependencies.py for the libraries named and makes variables of what it prints.
function(trtprune_fetch)
  find_package(Python3 REQUIRED COMPONENTS Interpreter)
  list(JOIN ARGN ", " names)
  message(STATUS "Fetching ${names}")
  execute_process(
    COMMAND "${Python3_EXECUTABLE}" "${CMAKE_CURRENT_SOURCE_DIR}/fetch_dependencies.py" "${TRTPRUNE_DEPENDENCIES}" ${ARGN}
    OUTPUT_VARIABLE output RESULT_VARIABLE failed OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(failed)
    message(FATAL_ERROR "fetch_dependencies.py could not download ${names}; install what is missing, see docs/cpp.md")
  endif()
  foreach(name TRTPRUNE_ONNXRUNTIME_LIBRARY TRTPRUNE_DEPENDENCY_PREFIXES)
    if(output MATCHES "${name}=([^\n]+)")
      set(${name} "${CMAKE_MATCH_1}" PARENT_SCOPE)
    endif()
  endforeach()
endfunction()

# One look for each library; called once to see what is missing, and once more to insist on it.
macro(trtprune_find_dependencies)
  find_package(nlohmann_json 3.11 ${ARGV})
  find_package(JPEG ${ARGV})
  find_package(PNG ${ARGV})
  find_package(WebPDecoder ${ARGV})
  find_path(TRTPRUNE_ONNXRUNTIME_INCLUDE onnxruntime_cxx_api.h
            HINTS "${TRTPRUNE_ONNXRUNTIME_ROOT}/include" PATH_SUFFIXES onnxruntime)
  if(TRTPRUNE_BUILD_TESTS)
    find_path(TRTPRUNE_DOCTEST_INCLUDE doctest/doctest.h)
  endif()
endmacro()

list(APPEND CMAKE_MODULE_PATH "${CMAKE_CURRENT_LIST_DIR}")
trtprune_find_dependencies(QUIET)

set(TRTPRUNE_MISSING "")
foreach(pair nlohmann_json_FOUND:nlohmann-json JPEG_FOUND:libjpeg-turbo PNG_FOUND:libpng WebPDecoder_FOUND:libwebp
        TRTPRUNE_ONNXRUNTIME_INCLUDE:onnxruntime TRTPRUNE_DOCTEST_INCLUDE:doctest)
  string(REPLACE ":" ";" pair "${pair}")
  list(GET pair 0 variable)
  list(GET pair 1 library)
  if(NOT ${variable} AND NOT (library STREQUAL "doctest" AND NOT TRTPRUNE_BUILD_TESTS))
    list(APPEND TRTPRUNE_MISSING ${library})
  endif()
endforeach()

if(TRTPRUNE_FETCH)
  # The tests load ONNX Runtime; a program finds it by itself, see docs/cpp.md.
  trtprune_fetch(${TRTPRUNE_MISSING} onnxruntime-library)
  # The next configuration has them in its cache, and misses nothing.
  list(APPEND TRTPRUNE_FETCHED ${TRTPRUNE_DEPENDENCY_PREFIXES})
  list(REMOVE_DUPLICATES TRTPRUNE_FETCHED)
  set(TRTPRUNE_FETCHED "${TRTPRUNE_FETCHED}" CACHE INTERNAL "Prefixes of downloaded libraries")
  foreach(prefix ${TRTPRUNE_FETCHED})
    list(APPEND CMAKE_PREFIX_PATH "${prefix}")
    if(CMAKE_LIBRARY_ARCHITECTURE AND IS_DIRECTORY "${prefix}/include/${CMAKE_LIBRARY_ARCHITECTURE}")
      include_directories(SYSTEM "${prefix}/include/${CMAKE_LIBRARY_ARCHITECTURE}")
    endif()
  endforeach()
  trtprune_find_dependencies(REQUIRED)
elseif(TRTPRUNE_MISSING)
  list(JOIN TRTPRUNE_MISSING ", " names)
  message(FATAL_ERROR
    "missing: ${names}. Install them (Debian: nlohmann-json3-dev libjpeg-dev libpng-dev libwebp-dev doctest-dev; "
    "-DTRTPRUNE_ONNXRUNTIME_ROOT=FOLDER with ONNX Runtime's include/), or configure with -DTRTPRUNE_FETCH=ON "
    "to download them into ${TRTPRUNE_DEPENDENCIES}")
endif()
find_package(Threads REQUIRED)
