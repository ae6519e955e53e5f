# CMake reads this after native/llama_cpp.cmake, which turns off llama.cpp's "common" library. The programs need it.
set(LLAMA_BUILD_COMMON ON)
