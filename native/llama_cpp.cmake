# Read by CMake right after llama.cpp's project(), through CMAKE_PROJECT_llama.cpp_INCLUDE.

# llama.cpp's "common" library serves its own programs only, and llama-cpp-python switches it on in the cache:
# a plain variable goes before. A third of the build's time.
set(LLAMA_BUILD_COMMON OFF)

# Attention of our own: called by ggml-cpu.c in place of ggml's, part of ggml's library for the CPU.
option(TOKENSTREAM_ATTENTION "Attend with flash_attention.cpp" ON)
if(TOKENSTREAM_ATTENTION)
  add_compile_definitions(
    $<$<COMPILE_LANGUAGE:C>:ggml_compute_forward_flash_attn_ext=tokenstream_flash_attn_ext>)
  cmake_language(EVAL CODE
    "cmake_language(DEFER CALL target_sources ggml-cpu PRIVATE [[${CMAKE_CURRENT_LIST_DIR}/flash_attention.cpp]])")
endif()

if(REPAIR_TILE_LOADCONFIG)
  add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:SHELL:-include \"${CMAKE_CURRENT_LIST_DIR}/amx_tile_config.h\">")
endif()

if(CMAKE_C_COMPILER_ID MATCHES "GNU|Clang")
  add_compile_options("$<$<COMPILE_LANGUAGE:C>:SHELL:-include \"${CMAKE_CURRENT_LIST_DIR}/yielding_pause.h\">")
endif()
