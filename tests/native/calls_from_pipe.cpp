// Calls functions of a shared library for another process: native_library.py. It runs under emulators of other CPUs.
//
// A call on standard input: length of the name, name, number of arguments. Each argument: -1 and an integer, or the
// size of an array and its bytes. The answer: the result, then the arrays. Numbers have 64 bits.

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

void read(void * to, size_t size) {
    if (fread(to, 1, size, stdin) != size) {
        exit(0); // the other process has closed the pipe
    }
}

int64_t read_number() {
    int64_t x;
    read(&x, sizeof(x));
    return x;
}

} // namespace

int main(int, char ** argv) {
    void * library = dlopen(argv[1], RTLD_NOW);
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    constexpr int MAX_ARGUMENTS = 12;
    for (;;) {
        std::string name(read_number(), ' ');
        read(&name[0], name.size());
        int64_t a[MAX_ARGUMENTS] = {};
        std::vector<std::vector<char>> arrays;
        const int64_t n = read_number();
        for (int i = 0; i < n; ++i) {
            const int64_t size = read_number();
            if (size < 0) {
                a[i] = read_number();
            } else {
                arrays.emplace_back(size);
                read(arrays.back().data(), size);
                a[i] = (int64_t) arrays.back().data();
            }
        }
        // Integers and pointers of up to 64 bits are passed alike.
        using Function = int64_t (*)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                                     int64_t, int64_t, int64_t);
        const auto function = (Function) dlsym(library, name.c_str());
        if (!function) {
            fprintf(stderr, "%s\n", dlerror());
            return 1;
        }
        const int64_t result = function(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11]);
        fwrite(&result, sizeof(result), 1, stdout);
        for (const auto & array : arrays) {
            fwrite(array.data(), 1, array.size(), stdout);
        }
        fflush(stdout);
    }
}
