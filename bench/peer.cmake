# Read by CMake after native/llama_cpp.cmake, which leaves llama.cpp's "common" library out: its programs need it.
set(LLAMA_BUILD_COMMON ON)
