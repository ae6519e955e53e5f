// Attention of query rows over f16 or Q8_0 keys and values: softmax(scale*Q*K + mask)*V, in f32.
//
// Depends only on compiler intrinsics: tests compile it for AVX2 and AVX-512 without ggml.
// flash_attention.cpp divides ggml's operation into calls of these functions.
//
// The keys are divided into parts of PART_KEYS, counted from the first key. For each part:
//   1. Scores: one sum per row and key, over the elements in order.
//   2. Weights: exp(score - highest score of the row in the part).
//   3. Weighted sums of V, over the keys in order.
// The results of the parts are merged in order (Milakov and Gimelshein, arXiv:1805.02867).
//
// A row's result depends only on its query, its mask, and the keys and values that it sees. Every sum has one
// order, for all numbers of rows, tile sizes and threads. Hidden keys add exact zeros.
#pragma once

#include "attention_tile.h"

namespace tokenstream {
namespace {

#ifdef TOKENSTREAM_ATTENTION_KERNEL

constexpr int BLOCK_KEYS = TILE_WIDTH*WIDTH; // of transposed keys

// Scores of R rows with a group of keys.
template <int R>
void group_scores(Tile & tile, int at) {
    Vec sum[R];
    UNROLL for (int r = 0; r < R; ++r) {
        sum[r] = zero();
    }
    const char * k = tile.half_keys(tile.group[at]);
    const size_t stride = tile.half_stride(tile.group[at]);
    for (int j = 0; j < tile.head->size; j += 8) {
        HalfVec x[8];
        transpose(k + j*sizeof(half), stride, x);
        UNROLL for (int i = 0; i < 8; ++i) {
            const Vec element = widen(x[i]);
            UNROLL for (int r = 0; r < R; ++r) {
                sum[r] = fma(element, all(tile.q[r][j + i]), sum[r]);
            }
        }
    }
    UNROLL for (int r = 0; r < R; ++r) {
        store(tile.scores[r] + at*WIDTH, sum[r]);
    }
}

// K of a part, transposed in blocks: BLOCK_KEYS keys of each element.
struct Transposed {
    alignas(64) half k[PART_KEYS*MAX_HEAD_SIZE];

    void set(Tile & tile) {
        for (int g = 0; g*WIDTH < tile.n_keys; ++g) {
            half * to = group(g, tile.head->size);
            const char * from = tile.half_keys(g);
            const size_t stride = tile.half_stride(g);
            for (int j = 0; j < tile.head->size; j += 8) {
                HalfVec x[8];
                transpose(from + j*sizeof(half), stride, x);
                for (int i = 0; i < 8; ++i) {
                    store(to + (j + i)*BLOCK_KEYS, x[i]);
                }
            }
        }
    }

    half * group(int g, int size) { return k + g/TILE_WIDTH*BLOCK_KEYS*size + g%TILE_WIDTH*WIDTH; }
};

// Scores of R rows with N neighbouring groups of a block of transposed keys.
template <int R, int N>
inline void block_scores(Tile & tile, const half * k, int at) {
    Vec sum[R][N];
    UNROLL for (int r = 0; r < R; ++r) {
        UNROLL for (int i = 0; i < N; ++i) {
            sum[r][i] = zero();
        }
    }
    for (int j = 0; j < tile.head->size; ++j) {
        Vec x[N];
        UNROLL for (int i = 0; i < N; ++i) {
            x[i] = load(k + j*BLOCK_KEYS + i*WIDTH);
        }
        UNROLL for (int r = 0; r < R; ++r) {
            const Vec q = all(tile.q[r][j]);
            UNROLL for (int i = 0; i < N; ++i) {
                sum[r][i] = fma(x[i], q, sum[r][i]);
            }
        }
    }
    UNROLL for (int r = 0; r < R; ++r) {
        UNROLL for (int i = 0; i < N; ++i) {
            store(tile.scores[r] + (at + i)*WIDTH, sum[r][i]);
        }
    }
}

// Scores of the largest number of groups, up to N, that are neighbours in a block. Returns that number.
template <int R, int N>
inline int next_scores(Tile & tile, Transposed & transposed, int at) {
    const int g = tile.group[at];
    if constexpr (N > 1) {
        if (g % TILE_WIDTH + N > TILE_WIDTH || at + N > tile.n_groups || tile.group[at + N - 1] != g + N - 1) {
            return next_scores<R, N - 1>(tile, transposed, at);
        }
    }
    block_scores<R, N>(tile, transposed.group(g, tile.head->size), at);
    return N;
}

template <int R>
void transposed_scores(Tile & tile, Transposed & transposed) {
    for (int at = 0; at < tile.n_groups;) {
        at += next_scores<R, TILE_WIDTH>(tile, transposed, at);
    }
}

// Add the weighted values of groups to the sums, from element `j` in tiles of N vectors per row, then smaller tiles.
template <int R, int N>
void add_values(Tile & tile, int from, int to, int j) {
    for (; j + N*WIDTH <= tile.head->size; j += N*WIDTH) {
        Vec sum[R][N];
        UNROLL for (int r = 0; r < R; ++r) {
            UNROLL for (int i = 0; i < N; ++i) {
                sum[r][i] = from == 0 ? zero() : load(tile.sums[r] + j + i*WIDTH);
            }
        }
        const size_t stride = tile.v_stride();
        for (int at = from; at < to; ++at) {
            const char * v = tile.values[at];
            // Values that no row sees are not read: they can be NaN.
            for (uint32_t bits = tile.visible[at]; bits != 0; bits &= bits - 1) {
                const int key = __builtin_ctz(bits);
                const half * values = (const half *) (v + key*stride) + j;
                Vec x[N];
                UNROLL for (int i = 0; i < N; ++i) {
                    x[i] = load(values + i*WIDTH);
                }
                UNROLL for (int r = 0; r < R; ++r) {
                    const Vec weight = all(tile.scores[r][at*WIDTH + key]);
                    UNROLL for (int i = 0; i < N; ++i) {
                        sum[r][i] = fma(x[i], weight, sum[r][i]);
                    }
                }
            }
        }
        UNROLL for (int r = 0; r < R; ++r) {
            UNROLL for (int i = 0; i < N; ++i) {
                store(tile.sums[r] + j + i*WIDTH, sum[r][i]);
            }
        }
    }
    if constexpr (N > 1) {
        add_values<R, N/2>(tile, from, to, j);
    }
}

// The functions for a number of rows.
struct Functions {
    void (*group_scores)(Tile &, int);
    void (*transposed_scores)(Tile &, Transposed &);
    void (*add_values)(Tile &, int, int, int);
};

template <int R> constexpr Functions FUNCTIONS_FOR = {group_scores<R>, transposed_scores<R>, add_values<R, TILE_WIDTH>};

inline const Functions & functions_of(const Tile & tile) {
    static constexpr Functions functions[TILE_ROWS] = {
        FUNCTIONS_FOR<1>, FUNCTIONS_FOR<2>, FUNCTIONS_FOR<3>, FUNCTIONS_FOR<4>, FUNCTIONS_FOR<5>, FUNCTIONS_FOR<6>,
    };
    return functions[tile.n_rows - 1];
}

// V of a part, unpacked.
struct Values {
    half v[PART_KEYS*MAX_HEAD_SIZE];

    void set(const Tile & tile) {
        for (int g = 0; g*WIDTH < tile.n_keys; ++g) {
            tile.unpack_group(tile.v(g), tile.head->v_stride, tile.keys(g), v + g*WIDTH*tile.head->size);
        }
    }
};

// Many rows of a head: tile by tile, with K transposed and V unpacked once.
inline void attend_many(Head & head, int64_t begin, float scale) {
    Transposed transposed;
    Values values;
    Tile tile;
    for (int first = 0; first < head.n_rows; first += TILE_ROWS) {
        tile.set(head, first, begin, scale);
        if (first == 0) {
            transposed.set(tile);
            if (head.is_packed) {
                values.set(tile);
            }
        }
        for (int at = 0; at < tile.n_groups && head.is_packed; ++at) {
            tile.values[at] = (const char *) (values.v + tile.group[at]*WIDTH*head.size);
        }
        prefetch_rows(head, first + TILE_ROWS, first + 2*TILE_ROWS, begin);
        functions_of(tile).transposed_scores(tile, transposed);
        float highest[TILE_ROWS], total[TILE_ROWS];
        for (int r = 0; r < tile.n_rows; ++r) {
            softmax(tile, r, highest[r], total[r]);
        }
        functions_of(tile).add_values(tile, 0, tile.n_groups, 0);
        for (int r = 0; r < tile.n_rows; ++r) {
            merge(tile.rows[r], tile.sums[r], highest[r], total[r], head.size);
        }
    }
}

// Few rows of some heads: reading K and V takes the time. The heads take turns, since their rows are neighbours.
inline void attend_few(Head * heads, int n_heads, int64_t begin, float scale) {
    constexpr int TURN = 32/WIDTH; // groups
    Tile tiles[MAX_HEADS];
    half unpacked[TURN*WIDTH*MAX_HEAD_SIZE];
    int n_groups = 0;
    for (int h = 0; h < n_heads; ++h) {
        tiles[h].set(heads[h], 0, begin, scale);
        n_groups = std::max(n_groups, tiles[h].n_groups);
    }
    for (int at = 0; at < n_groups; ++at) {
        for (int h = 0; h < n_heads; ++h) {
            prefetch_groups(tiles[h], false, at + 1, at + 2);
            if (at < tiles[h].n_groups) {
                functions_of(tiles[h]).group_scores(tiles[h], at);
            }
        }
    }
    float highest[MAX_HEADS][TILE_ROWS], total[MAX_HEADS][TILE_ROWS];
    for (int h = 0; h < n_heads; ++h) {
        prefetch_groups(tiles[h], true, 0, TURN);
        for (int r = 0; r < tiles[h].n_rows; ++r) {
            softmax(tiles[h], r, highest[h][r], total[h][r]);
        }
    }
    for (int at = 0; at < n_groups; at += TURN) {
        for (int h = 0; h < n_heads; ++h) {
            prefetch_groups(tiles[h], true, at + TURN, at + 2*TURN);
            const int to = std::min(at + TURN, tiles[h].n_groups);
            tiles[h].unpack_values(at, to, unpacked);
            functions_of(tiles[h]).add_values(tiles[h], at, to, 0);
        }
    }
    for (int h = 0; h < n_heads; ++h) {
        for (int r = 0; r < tiles[h].n_rows; ++r) {
            merge(tiles[h].rows[r], tiles[h].sums[r], highest[h][r], total[h][r], heads[h].size);
        }
    }
}

// Merge the keys from `begin` to the end of their part into the rows of all heads. More than TILE_ROWS rows: one head.
inline void attend(Head * heads, int n_heads, int64_t begin, float scale) {
    if (heads[0].n_rows > TILE_ROWS) {
        attend_many(heads[0], begin, scale);
    } else {
        attend_few(heads, n_heads, begin, scale);
    }
}

#endif

} // namespace
} // namespace tokenstream
