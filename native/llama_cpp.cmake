# Read by CMake right after llama.cpp's project() command, through CMAKE_PROJECT_llama.cpp_INCLUDE.

# The "common" library is used only by llama.cpp's programs and takes a third of the build time.
# llama-cpp-python enables it in the cache; a plain variable takes precedence.
set(LLAMA_BUILD_COMMON OFF)

# Sources for ggml-cpu. The target does not exist at this point, so the calls are deferred to the end of llama.cpp's
# CMakeLists.txt. exports.cpp and sampling.h include llama.h.
set(tokenstream_sources "${CMAKE_CURRENT_LIST_DIR}/exports.cpp" "${CMAKE_CURRENT_LIST_DIR}/sampling.cpp")

# OFF: ggml's attention, for comparisons.
option(TOKENSTREAM_ATTENTION "Compute attention with flash_attention.cpp" ON)
if(TOKENSTREAM_ATTENTION)
  list(APPEND tokenstream_sources "${CMAKE_CURRENT_LIST_DIR}/flash_attention.cpp")
  list(APPEND tokenstream_definitions TOKENSTREAM_ATTENTION)
  add_compile_definitions(
    $<$<COMPILE_LANGUAGE:C>:ggml_compute_forward_flash_attn_ext=tokenstream_flash_attn_ext>)
endif()

# OFF: ggml's matrix products, for comparisons. ggml-cpu.cpp calls tokenstream_graph_compute for every pass over a
# graph; passes.cpp prepares the pass first.
option(TOKENSTREAM_MATMUL "Compute matrix products with matmul.cpp" ON)
if(TOKENSTREAM_MATMUL)
  list(APPEND tokenstream_sources
    "${CMAKE_CURRENT_LIST_DIR}/passes.cpp" "${CMAKE_CURRENT_LIST_DIR}/matmul.cpp"
    "${CMAKE_CURRENT_LIST_DIR}/matmul_weights.cpp")
  list(APPEND tokenstream_definitions TOKENSTREAM_MATMUL)
  add_compile_definitions($<$<COMPILE_LANGUAGE:CXX>:ggml_graph_compute=tokenstream_graph_compute>)
endif()

# OFF: ggml's norms and rotations, for comparisons.
option(TOKENSTREAM_ROWS "Compute RMS norms and RoPE with row_operations.cpp" ON)
if(TOKENSTREAM_ROWS)
  list(APPEND tokenstream_sources "${CMAKE_CURRENT_LIST_DIR}/row_operations.cpp")
  list(APPEND tokenstream_definitions TOKENSTREAM_ROWS)
  add_compile_definitions(
    $<$<COMPILE_LANGUAGE:C>:ggml_compute_forward_rms_norm=tokenstream_rms_norm>
    $<$<COMPILE_LANGUAGE:C>:ggml_compute_forward_rms_norm_mul_fused=tokenstream_rms_norm_mul>
    $<$<COMPILE_LANGUAGE:C>:ggml_compute_forward_rope=tokenstream_rope>)
endif()

# passes.cpp combines operations of these files.
if(tokenstream_definitions)
  cmake_language(EVAL CODE
    "cmake_language(DEFER CALL target_compile_definitions ggml-cpu PRIVATE ${tokenstream_definitions})")
endif()
foreach(source IN LISTS tokenstream_sources)
  cmake_language(EVAL CODE "cmake_language(DEFER CALL target_sources ggml-cpu PRIVATE [[${source}]])")
endforeach()
cmake_language(EVAL CODE
  "cmake_language(DEFER CALL target_include_directories ggml-cpu PRIVATE [[${PROJECT_SOURCE_DIR}/include]])")

if(REPAIR_TILE_LOADCONFIG)
  add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:SHELL:-include \"${CMAKE_CURRENT_LIST_DIR}/amx_tile_config.h\">")
endif()

if(CMAKE_C_COMPILER_ID MATCHES "GNU|Clang")
  add_compile_options("$<$<COMPILE_LANGUAGE:C>:SHELL:-include \"${CMAKE_CURRENT_LIST_DIR}/yielding_pause.h\">")
endif()
