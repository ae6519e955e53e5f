// A row of logits: its largest values and its softmax, without a copy of all logits.
//
// The maxima of parts of the row are found first. Parts that cannot matter are skipped afterwards. Vectors are those
// of GCC and Clang; the compiler maps them to the instructions of the build.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <iterator>
#include <numeric>
#include <vector>

namespace tokenstream {
namespace {

#if defined(__AVX512F__)
constexpr int WIDTH = 16; // floats per vector
#elif defined(__AVX__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif

typedef float Floats __attribute__((vector_size(4*WIDTH)));
typedef int32_t Ints __attribute__((vector_size(4*WIDTH)));

constexpr int GROUP = 512; // logits
constexpr int LANES = 16;  // partial results of a group, each of every 16th logit
constexpr int RUN = 64;    // logits that are searched together
constexpr float LOG2_E = 1.44269504f;
constexpr float LEAST_EXPONENT = -126; // of a weight, to base 2; smaller weights are 0

inline Floats load(const float * x) {
    Floats v;
    memcpy(&v, x, sizeof(v));
    return v;
}

inline void store(float * to, Floats x) { memcpy(to, &x, sizeof(x)); }

inline Floats splat(float x) { return x - Floats{}; }

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// 2^x for x from LEAST_EXPONENT to 0, relative error below 2e-7; exactly 0 for LEAST_EXPONENT.
inline Floats exp2_of(Floats x) {
    const Floats magic = splat(12582912.0f); // 1.5*2^23: the low bits of the sum are x, rounded
    const Floats n = x + magic;
    const Floats rest = x - (n - magic); // -0.5 to 0.5
    Floats p = rest*1.32647273e-3f + 9.67151299e-3f;
    p = p*rest + 5.55073358e-2f;
    p = p*rest + 2.40222424e-1f;
    p = p*rest + 6.93147004e-1f;
    p = p*rest + 1.0f;
    Ints bits, shift;
    memcpy(&bits, &p, sizeof(bits));
    memcpy(&shift, &n, sizeof(shift));
    bits = (bits + (shift << 23)) & (Ints) (x > splat(LEAST_EXPONENT));
    memcpy(&p, &bits, sizeof(p));
    return p;
}

struct Candidate {
    int32_t token;
    float logit;
};

// The more likely first; equal logits in the order of tokens.
inline bool is_before(const Candidate & a, const Candidate & b) {
    return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}

// Of the weights of a row: exp((logit - highest)/temperature).
struct Softmax {
    double sum;
    double entropy; // in nats
};

class Row {
  public:
    void read(const float * logits, int32_t n) {
        logits_ = logits, n_ = n;
        const size_t n_groups = (n + GROUP - 1)/GROUP;
        lanes_.resize(n_groups*LANES);
        maxima_.resize(n_groups);
        for (size_t g = 0; g < n_groups; ++g) {
            float space[GROUP];
            const float * x = group(g, space);
            Floats most[LANES/WIDTH];
            for (int i = 0; i < LANES/WIDTH; ++i) {
                most[i] = splat(-INFINITY);
            }
            for (int j = 0; j < GROUP; j += LANES) {
                for (int i = 0; i < LANES/WIDTH; ++i) {
                    most[i] = larger(load(x + j + i*WIDTH), most[i]);
                }
            }
            float * lanes = lanes_.data() + g*LANES;
            for (int i = 0; i < LANES/WIDTH; ++i) {
                store(lanes + i*WIDTH, most[i]);
            }
            maxima_[g] = *std::max_element(lanes, lanes + LANES);
        }
        highest_ = *std::max_element(maxima_.begin(), maxima_.end());
    }

    float highest() const { return highest_; }

    // The first token of the highest logit.
    int32_t likeliest() const {
        const size_t g = std::find(maxima_.begin(), maxima_.end(), highest_) - maxima_.begin();
        return std::find(logits_ + g*GROUP, logits_ + n_, highest_) - logits_;
    }

    Softmax softmax(float temperature) {
        scale_ = LOG2_E/temperature;
        sums_.resize(maxima_.size());
        double sum = 0, exponents = 0;
        for (size_t g = 0; g < maxima_.size(); ++g) {
            sums_[g] = 0;
            if ((maxima_[g] - highest_)*scale_ <= LEAST_EXPONENT) {
                continue;
            }
            float space[GROUP];
            const float * x = group(g, space);
            Floats weights[LANES/WIDTH] = {}, weighted[LANES/WIDTH] = {};
            for (int j = 0; j < GROUP; j += LANES) {
                for (int i = 0; i < LANES/WIDTH; ++i) {
                    const Floats exponent = exponents_of(x + j + i*WIDTH);
                    const Floats weight = exp2_of(exponent);
                    weights[i] += weight;
                    weighted[i] += weight*exponent;
                }
            }
            sums_[g] = sum_of(weights);
            sum += sums_[g];
            exponents += sum_of(weighted);
        }
        return {sum, std::log(sum) - exponents/sum/LOG2_E};
    }

    // The token at a place in the running sum of the weights of softmax(). Rounding can move a place beyond the
    // end; that is the last token with a weight.
    int32_t token_at(double place) const {
        const size_t g = find(sums_.data(), sums_.size(), place);
        float space[GROUP], weights[GROUP];
        const float * x = group(g, space);
        for (int i = 0; i < GROUP; i += WIDTH) {
            store(weights + i, exp2_of(exponents_of(x + i)));
        }
        return g*GROUP + find(weights, GROUP, place);
    }

    // Replace the list by the tokens with logits from `low` to `high`.
    void collect(float low, float high, std::vector<Candidate> & list) const {
        list.clear();
        for (size_t g = 0; g < maxima_.size(); ++g) {
            if (maxima_[g] < low) {
                continue;
            }
            const int32_t end = std::min<int32_t>(n_, (g + 1)*GROUP);
            for (int32_t begin = g*GROUP; begin < end; begin += RUN) {
                if (begin + RUN > end || has_any(logits_ + begin, low, high)) {
                    for (int32_t token = begin; token < std::min(begin + RUN, end); ++token) {
                        if (logits_[token] >= low && logits_[token] <= high) {
                            list.push_back({token, logits_[token]});
                        }
                    }
                }
            }
        }
    }

    // Replace the list by the `k` most likely tokens with logits from `low`.
    void collect_top(size_t k, float low, std::vector<Candidate> & list) {
        // k parts of the row have a maximum of at least the k-th, so k tokens have such a logit.
        const std::vector<float> & parts = k < maxima_.size()/2 ? maxima_ : lanes_;
        if (k > 0 && k < parts.size()) {
            top_ = parts;
            std::nth_element(top_.begin(), top_.begin() + k - 1, top_.end(), std::greater<float>());
            low = std::max(low, top_[k - 1]);
        }
        collect(low, INFINITY, list);
        if (k < list.size()) {
            std::nth_element(list.begin(), list.begin() + k, list.end(), is_before);
            list.resize(k);
        }
    }

  private:
    // A group's logits; the last group is padded.
    const float * group(size_t g, float * space) const {
        const float * x = logits_ + g*GROUP;
        const int32_t left = n_ - (int32_t) g*GROUP;
        if (left >= GROUP) {
            return x;
        }
        std::fill(std::copy(x, x + left, space), space + GROUP, -INFINITY);
        return space;
    }

    Floats exponents_of(const float * x) const { return larger((load(x) - highest_)*scale_, splat(LEAST_EXPONENT)); }

    static float sum_of(const Floats * x) {
        float lanes[LANES];
        for (int i = 0; i < LANES/WIDTH; ++i) {
            store(lanes + i*WIDTH, x[i]);
        }
        return std::accumulate(lanes, lanes + LANES, 0.0f);
    }

    static bool has_any(const float * x, float low, float high) {
        Ints found = {};
        for (int i = 0; i < RUN; i += WIDTH) {
            const Floats logits = load(x + i);
            found |= (logits >= splat(low)) & (logits <= splat(high));
        }
        uint64_t words[sizeof(found)/8];
        memcpy(words, &found, sizeof(found));
        return std::any_of(std::begin(words), std::end(words), [](uint64_t word) { return word != 0; });
    }

    // The index at a place in a running sum of weights, which is subtracted from the place.
    template <class Weight> static size_t find(const Weight * weights, size_t n, double & place) {
        size_t found = 0;
        for (size_t i = 0; i < n; ++i) {
            if (weights[i] > 0) {
                found = i;
                if (place < weights[i]) {
                    break;
                }
                place -= weights[i];
            }
        }
        return found;
    }

    const float * logits_;
    int32_t n_;
    float highest_, scale_;
    std::vector<float> lanes_, maxima_, top_;
    std::vector<double> sums_;
};

} // namespace
} // namespace tokenstream
