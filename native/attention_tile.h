// Rows and keys of attention_kernel.h: the part of the keys that is computed at once, and the merge of parts.
#pragma once

#include "attention_vectors.h"

#include <algorithm>
#include <cmath>

namespace tokenstream {
namespace {

constexpr int MAX_HEAD_SIZE = 256;
constexpr int MAX_ROWS = 96; // of a head: K is transposed once for so many
constexpr int MAX_HEADS = 8; // at once
constexpr int PART_KEYS = 256;

// A query, and the weighted sum of V so far, relative to 2^highest.
struct Row {
    const float * q;
    const half * mask; // added to the scores, one value per key; null: every key is visible
    float slope;       // of the mask (ALiBi); 1: the mask is added as it is
    float sink;        // score of an additional key whose value is zero; minus infinity: none
    float * out;       // head_size values
    float highest;     // score, in units of log2
    float total;       // of the weights
};

// Keys and values of a KV head, and query rows: heads of its group (GQA), at one or more positions.
struct Head {
    const char * k;
    const char * v;
    size_t k_stride; // bytes
    size_t v_stride;
    int64_t n_keys;
    int size;  // elements: a multiple of WIDTH, at most MAX_HEAD_SIZE
    bool is_packed; // K and V are Q8_0; size is a multiple of 32. Otherwise they are halves
    float cap; // scores become cap*tanh(score/cap); 0: they do not
    int n_rows;
    Row rows[MAX_ROWS];
};

#ifdef TOKENSTREAM_ATTENTION_KERNEL

constexpr int MAX_GROUPS = PART_KEYS/WIDTH;
constexpr float LOG2_E = 1.44269504f;

inline void start(Row & row) {
    row.highest = -INFINITY;
    row.total = 0.0f;
}

// Merge a part into a row. A part without a visible key changes nothing.
inline void merge(Row & row, const float * sums, float highest, float total, int size) {
    if (highest == -INFINITY) {
        return;
    }
    if (row.highest == -INFINITY) { // the first part
        std::copy_n(sums, size, row.out);
        row.highest = highest, row.total = total;
        return;
    }
    const float best = std::max(row.highest, highest);
    const float old_factor = exp2f(row.highest - best), new_factor = exp2f(highest - best);
    row.highest = best;
    row.total = fmaf(row.total, old_factor, total*new_factor);
    for (int j = 0; j < size; j += WIDTH) {
        store(row.out + j, fma(load(row.out + j), all(old_factor), mul(load(sums + j), all(new_factor))));
    }
}

inline void finish(Row & row, int size) {
    if (row.highest == -INFINITY) { // no visible key
        std::fill_n(row.out, size, 0.0f);
        return;
    }
    const float sink = row.sink*LOG2_E, best = std::max(row.highest, sink);
    const float factor = exp2f(row.highest - best);
    const Vec share = all(factor/fmaf(row.total, factor, exp2f(sink - best)));
    for (int j = 0; j < size; j += WIDTH) {
        store(row.out + j, mul(load(row.out + j), share));
    }
}

// Up to TILE_ROWS rows, and the keys of a part in groups of WIDTH. Groups that no row sees are left out.
struct Tile {
    Head * head;
    Row * rows;
    int n_rows;
    int64_t begin; // key
    int n_keys;
    int n_groups;
    uint8_t group[MAX_GROUPS];
    uint32_t visible[MAX_GROUPS]; // a bit per key: whether any row sees it
    bool is_masked[MAX_GROUPS];   // whether any row has a mask other than zero
    alignas(64) float q[TILE_ROWS][MAX_HEAD_SIZE];    // scaled: scores have the unit log2, or are those of tanh_of()
    alignas(64) float scores[TILE_ROWS][PART_KEYS];   // then the weights
    alignas(64) float sums[TILE_ROWS][MAX_HEAD_SIZE]; // of V
    const char * values[MAX_GROUPS]; // halves of V, v_stride() bytes per key
    half unpacked[WIDTH*MAX_HEAD_SIZE]; // a group of packed keys
    // An incomplete last group of keys, filled up.
    half tail[WIDTH*MAX_HEAD_SIZE];
    half tail_mask[TILE_ROWS][WIDTH];

    void set(Head & of, int first, int64_t from, float scale) {
        head = &of, rows = of.rows + first, n_rows = std::min(TILE_ROWS, of.n_rows - first);
        begin = from, n_keys = (int) std::min<int64_t>(PART_KEYS, of.n_keys - from);
        set_tail();
        find_visible();
        const float unit = of.cap == 0.0f ? scale*LOG2_E : 2*scale/of.cap*LOG2_E;
        for (int r = 0; r < n_rows; ++r) {
            for (int j = 0; j < of.size; j += WIDTH) {
                store(q[r] + j, mul(load(rows[r].q + j), all(unit)));
            }
        }
    }

    void set_tail() {
        const int n = n_keys % WIDTH;
        const int64_t first = begin + n_keys - n;
        if (n == 0) {
            return;
        }
        std::fill_n(tail, WIDTH*head->size, half{0});
        for (int i = 0; i < n; ++i) {
            const char * key = head->k + (first + i)*head->k_stride;
            if (head->is_packed) {
                unpack((const Block *) key, head->size, tail + i*head->size);
            } else {
                std::copy_n((const half *) key, head->size, tail + i*head->size);
            }
        }
        for (int r = 0; r < n_rows; ++r) {
            std::fill_n(tail_mask[r], WIDTH, HIDDEN);
            if (rows[r].mask) {
                std::copy_n(rows[r].mask + first, n, tail_mask[r]);
            } else {
                std::fill_n(tail_mask[r], n, half{0});
            }
        }
    }

    void find_visible() {
        const int n = (n_keys + WIDTH - 1)/WIDTH;
        uint32_t bits[MAX_GROUPS] = {};
        bool any_mask[MAX_GROUPS] = {};
        for (int r = 0; r < n_rows; ++r) {
            if (r > 0 && rows[r].mask == rows[r - 1].mask) {
                continue; // heads of a position have the same mask
            }
            for (int g = 0; g < n; ++g) {
                const half * mask = mask_of(r, g);
                bits[g] |= mask ? visible_of(mask) : (1u << WIDTH) - 1;
                any_mask[g] |= mask && !is_zero(mask);
            }
        }
        n_groups = 0;
        for (int g = 0; g < n; ++g) {
            group[n_groups] = (uint8_t) g, visible[n_groups] = bits[g], is_masked[n_groups] = any_mask[g];
            values[n_groups] = v(g);
            n_groups += bits[g] != 0;
        }
    }

    bool is_tail(int g) const { return (g + 1)*WIDTH > n_keys; }

    const half * mask_of(int r, int g) const {
        return is_tail(g) ? tail_mask[r] : rows[r].mask ? rows[r].mask + begin + g*WIDTH : nullptr;
    }

    const char * k(int g) const { return head->k + (begin + g*WIDTH)*head->k_stride; }
    const char * v(int g) const { return head->v + (begin + g*WIDTH)*head->v_stride; }
    int keys(int g) const { return std::min(WIDTH, n_keys - g*WIDTH); }

    // Halves of a group of keys, half_stride() bytes per key. Valid until the next call.
    const char * half_keys(int g) {
        if (is_tail(g)) {
            return (const char *) tail;
        }
        if (!head->is_packed) {
            return k(g);
        }
        unpack_group(k(g), head->k_stride, WIDTH, unpacked);
        return (const char *) unpacked;
    }
    size_t half_stride(int g) const { return is_tail(g) || head->is_packed ? head->size*sizeof(half) : head->k_stride; }
    size_t v_stride() const { return head->is_packed ? head->size*sizeof(half) : head->v_stride; }

    void unpack_group(const char * from, size_t stride, int n, half * to) const {
        for (int i = 0; i < n; ++i) {
            unpack((const Block *) (from + i*stride), head->size, to + i*head->size);
        }
    }

    // Unpack the values of the groups `from` to `to`. `scratch`: halves of that many groups.
    void unpack_values(int from, int to, half * scratch) {
        for (int at = from; at < to && head->is_packed; ++at, scratch += WIDTH*head->size) {
            unpack_group(v(group[at]), head->v_stride, keys(group[at]), scratch);
            values[at] = (const char *) scratch;
        }
    }
};

// Read memory ahead, into the L2 cache.
inline void prefetch(const void * from, size_t size) {
    for (size_t at = 0; at < size; at += 64) {
        __builtin_prefetch((const char *) from + at, 0, 2);
    }
}

// Keys or values of groups. The processor does not read them ahead: the rows of a head are apart.
inline void prefetch_groups(const Tile & tile, bool values, int from, int to) {
    const size_t stride = values ? tile.head->v_stride : tile.head->k_stride;
    for (int at = from; at < std::min(to, tile.n_groups); ++at) {
        const char * rows = values ? tile.v(tile.group[at]) : tile.k(tile.group[at]);
        for (int i = 0; i < WIDTH && !tile.is_tail(tile.group[at]); ++i) {
            prefetch(rows + i*stride, tile.head->is_packed ? tile.head->size/32*sizeof(Block) : tile.head->size*sizeof(half));
        }
    }
}

inline void prefetch_rows(const Head & head, int from, int to, int64_t begin) {
    for (int r = from; r < std::min(to, head.n_rows); ++r) {
        const Row & row = head.rows[r];
        prefetch(row.q, head.size*sizeof(float));
        prefetch(row.out, head.size*sizeof(float));
        if (row.mask && row.mask != head.rows[r - 1].mask) {
            prefetch(row.mask + begin, PART_KEYS*sizeof(half));
        }
    }
}

// Replace a row's scores by weights; set their sum and the highest score.
inline void softmax(Tile & tile, int r, float & highest, float & total) {
    float * scores = tile.scores[r];
    Vec best = all(-INFINITY);
    for (int at = 0; at < tile.n_groups; ++at) {
        Vec score = load(scores + at*WIDTH);
        if (tile.head->cap != 0.0f) {
            score = mul(tanh_of(score), all(tile.head->cap*LOG2_E));
        }
        if (tile.is_masked[at]) {
            const half * values = tile.mask_of(r, tile.group[at]);
            const Vec mask = values ? load(values) : zero();
            score = unless_hidden(fma(mask, all(tile.rows[r].slope*LOG2_E), score), mask);
        }
        store(scores + at*WIDTH, score);
        best = max(best, score);
    }
    highest = max_of(best);
    // A lane adds the same keys, whichever groups are left out.
    const Vec least = all(highest == -INFINITY ? 0.0f : highest);
    Vec sum = zero();
    for (int at = 0; at < tile.n_groups; ++at) {
        const Vec weight = exp2_of(sub(load(scores + at*WIDTH), least));
        sum = add(sum, weight);
        store(scores + at*WIDTH, weight);
    }
    total = sum_of(sum);
}

#endif

} // namespace
} // namespace tokenstream
