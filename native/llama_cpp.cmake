# Read by CMake right after llama.cpp's project(), through CMAKE_PROJECT_llama.cpp_INCLUDE.

# llama.cpp's "common" library serves its own programs only, and llama-cpp-python switches it on in the cache:
# a plain variable goes before. A third of the build's time.
set(LLAMA_BUILD_COMMON OFF)

if(REPAIR_TILE_LOADCONFIG)
  add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:SHELL:-include \"${CMAKE_CURRENT_LIST_DIR}/amx_tile_config.h\">")
endif()

if(CMAKE_C_COMPILER_ID MATCHES "GNU|Clang")
  add_compile_options("$<$<COMPILE_LANGUAGE:C>:SHELL:-include \"${CMAKE_CURRENT_LIST_DIR}/yielding_pause.h\">")
endif()
