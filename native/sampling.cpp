// Sampling of tokens from rows of logits, called from app/engine/llama/sampler.py through ctypes.
//
// Distributions are those of a chain of llama.cpp's samplers: bias, penalties, top_k, typical_p, top_p, min_p,
// temperature. The chain copies the vocabulary to an array for each token. Here, penalties touch only tokens that have
// occurred, and truncation collects only tokens that it may keep.

#include "sampling.h"

#include "logits_row.h"

#include <cfloat>
#include <deque>
#include <unordered_map>

using namespace tokenstream;

namespace {

constexpr int BUCKETS = 1024;

struct Ranked {
    Candidate candidate;
    double weight, distance;
};

// Memory that a thread's samplers use again for each token.
struct Buffers {
    Row row;
    std::vector<Candidate> list;
    std::vector<Ranked> ranked;
    std::vector<double> weights;
};
thread_local Buffers buffers;

double weight_of(const Candidate & c, double highest, double temperature) {
    return std::exp((c.logit - highest)/temperature);
}

double highest_of(const std::vector<Candidate> & list) {
    return std::min_element(list.begin(), list.end(), is_before)->logit;
}

// Of the weights at temperature 1.
Softmax softmax_of(const std::vector<Candidate> & list, double highest) {
    double sum = 0, distances = 0;
    for (const Candidate & c : list) {
        const double weight = weight_of(c, highest, 1);
        sum += weight;
        distances += weight*(highest - c.logit);
    }
    return {sum, std::log(sum) + distances/sum};
}

// Keep the tokens whose information, -log p, is nearest to `centre`, until their weights are `part` of `sum`.
void keep_nearest(std::vector<Candidate> & list, double highest, double sum, double centre, double part) {
    std::vector<Ranked> & ranked = buffers.ranked;
    ranked.clear();
    const double nearest = std::log(sum) + highest - centre; // the logit of this information
    double furthest = 0;
    for (const Candidate & c : list) {
        ranked.push_back({c, weight_of(c, highest, 1), std::fabs(nearest - c.logit)});
        furthest = std::max(furthest, ranked.back().distance);
    }
    // A histogram of distances shows which tokens are clearly kept. Only those at the limit are sorted.
    double weights[BUCKETS] = {};
    const double scale = furthest > 0 ? (BUCKETS - 1)/furthest : 0;
    const auto bucket_of = [scale](const Ranked & r) { return (int) (r.distance*scale); };
    for (const Ranked & r : ranked) {
        weights[bucket_of(r)] += r.weight;
    }
    int limit = 0;
    double kept = 0;
    while (limit < BUCKETS - 1 && kept + weights[limit] < part*sum) {
        kept += weights[limit++];
    }
    list.clear();
    auto end = ranked.begin();
    for (const Ranked & r : ranked) {
        if (bucket_of(r) < limit) {
            list.push_back(r.candidate);
        } else if (bucket_of(r) == limit) {
            *end++ = r;
        }
    }
    std::sort(ranked.begin(), end, [](const Ranked & a, const Ranked & b) {
        return a.distance != b.distance ? a.distance < b.distance : is_before(a.candidate, b.candidate);
    });
    for (auto r = ranked.begin(); r != end && (list.empty() || kept < part*sum); ++r) {
        list.push_back(r->candidate);
        kept += r->weight;
    }
}

// The same for all tokens of a row. Tokens within a growing distance are collected until their weights suffice.
void collect_nearest(const Row & row, const Softmax & all, double centre, double part, std::vector<Candidate> & list) {
    const double most = std::log(all.sum) + row.highest(); // minus a token's logit: its information
    const double least = row.highest() + LEAST_EXPONENT/LOG2_E;
    for (double distance = 4;; distance *= 1.5) {
        const double low = most - centre - distance, high = most - centre + distance;
        row.collect(low, high, list);
        const bool is_all = low < least && high > row.highest();
        if (is_all || softmax_of(list, row.highest()).sum >= part*all.sum) {
            break;
        }
    }
    keep_nearest(list, row.highest(), all.sum, centre, part);
}

void keep_min_p(std::vector<Candidate> & list, float part) {
    const float low = highest_of(list) + std::log(part);
    const auto is_below = [low](const Candidate & c) { return c.logit < low; };
    list.erase(std::remove_if(list.begin(), list.end(), is_below), list.end());
}

int32_t draw(const std::vector<Candidate> & list, double temperature, double place) {
    const double highest = highest_of(list);
    std::vector<double> & weights = buffers.weights;
    weights.clear();
    double sum = 0;
    for (const Candidate & c : list) {
        weights.push_back(weight_of(c, highest, temperature));
        sum += weights.back();
    }
    place *= sum;
    int32_t token = -1;
    for (size_t i = 0; i < list.size(); ++i) {
        if (weights[i] > 0) { // rounding can leave a place beyond the end
            token = list[i].token;
            if (place < weights[i]) {
                break;
            }
            place -= weights[i];
        }
    }
    return token;
}

// How often a token has occurred.
struct Count {
    int32_t recent = 0; // in the last tokens of prompt and answer
    int32_t answer = 0;
};

} // namespace

struct tokenstream_sampler {
    explicit tokenstream_sampler(const tokenstream_sampling & params) :
        params_(params), bias_(params.bias, params.bias + params.n_bias) {
        params_.bias = nullptr, params_.prompt = nullptr; // not valid after this call
        for (int32_t i = 0; i < params.n_prompt; ++i) {
            count_recent(params.prompt[i]);
        }
    }

    int32_t sample(float * logits, int32_t n, double place) {
        adjust(logits, n);
        const int32_t token = choose(logits, n, place);
        for (auto i = before_.rbegin(); i != before_.rend(); ++i) {
            logits[i->token] = i->logit;
        }
        if (token >= 0) {
            count_recent(token);
            if (params_.presence_penalty != 0 || params_.frequency_penalty != 0) {
                ++counts_[token].answer;
            }
        }
        return token;
    }

  private:
    void count_recent(llama_token token) {
        if (params_.repeat_last_n <= 0) {
            return;
        }
        ++counts_[token].recent;
        recent_.push_back(token);
        if (recent_.size() > (size_t) params_.repeat_last_n) {
            const auto oldest = counts_.find(recent_.front());
            recent_.pop_front();
            if (--oldest->second.recent == 0 && oldest->second.answer == 0) {
                counts_.erase(oldest);
            }
        }
    }

    // Add bias and penalties in place, and keep the logits from before.
    void adjust(float * logits, int32_t n) {
        before_.clear();
        for (const llama_logit_bias & bias : bias_) {
            if (bias.token >= 0 && bias.token < n) {
                before_.push_back({bias.token, logits[bias.token]});
                logits[bias.token] += bias.bias;
            }
        }
        for (const auto & [token, count] : counts_) {
            if (token < 0 || token >= n) {
                continue;
            }
            float & logit = logits[token];
            before_.push_back({token, logit});
            if (count.recent > 0) {
                logit = logit > 0 ? logit/params_.repetition_penalty : logit*params_.repetition_penalty;
            }
            if (count.answer > 0) {
                logit -= count.answer*params_.frequency_penalty + params_.presence_penalty;
            }
        }
    }

    int32_t choose(const float * logits, int32_t n, double place) const {
        Row & row = buffers.row;
        row.read(logits, n);
        if (!std::isfinite(row.highest())) {
            return -1;
        }
        if (params_.temperature == 0) {
            return row.likeliest();
        }
        std::vector<Candidate> & list = buffers.list;
        if (!truncate(row, list)) {
            return row.token_at(place*row.softmax(params_.temperature).sum);
        }
        return draw(list, params_.temperature, place);
    }

    // Collect the tokens that can be drawn. Returns false, without a list, if nothing is truncated.
    bool truncate(Row & row, std::vector<Candidate> & list) const {
        const float typical_p = params_.typical_p, top_p = params_.top_p, min_p = params_.min_p;
        // llama.cpp keeps tokens until their sum exceeds typical_p, but until it reaches top_p.
        const double typical_part = std::nextafter((double) typical_p, 2.0);
        const double highest = row.highest();
        bool is_collected = false;
        if (params_.top_k > 0) {
            row.collect_top(params_.top_k, -FLT_MAX, list);
            is_collected = true;
        }
        if (typical_p < 1) {
            const Softmax all = is_collected ? softmax_of(list, highest) : row.softmax(1);
            is_collected ? keep_nearest(list, highest, all.sum, all.entropy, typical_part)
                         : collect_nearest(row, all, all.entropy, typical_part, list);
            is_collected = true;
        }
        if (top_p < 1) {
            const Softmax all = is_collected ? softmax_of(list, highest) : row.softmax(1);
            is_collected ? keep_nearest(list, highest, all.sum, 0, top_p) : collect_nearest(row, all, 0, top_p, list);
            is_collected = true;
        }
        if (min_p > 0) {
            is_collected ? keep_min_p(list, min_p) : row.collect(row.highest() + std::log(min_p), INFINITY, list);
            is_collected = true;
        }
        return is_collected;
    }

    tokenstream_sampling params_;
    std::vector<llama_logit_bias> bias_;
    std::deque<llama_token> recent_;
    std::unordered_map<llama_token, Count> counts_;
    std::vector<Candidate> before_;
};

extern "C" {

tokenstream_sampler * tokenstream_sampler_new(const tokenstream_sampling * params) {
    return new tokenstream_sampler(*params);
}

// Choose a token and count it for the penalties. `place`: a uniform random number, 0 <= place < 1. The logits are
// written, and restored before the return. Returns -1 if no logit is finite.
int32_t tokenstream_sampler_sample(tokenstream_sampler * sampler, float * logits, int32_t n, double place) {
    return sampler->sample(logits, n, place);
}

void tokenstream_sampler_free(tokenstream_sampler * sampler) { delete sampler; }

// Set the logits of tokens whose bit is 0 to minus infinity. The bits are those of words, the lowest first.
void tokenstream_mask(float * logits, int32_t n, const uint32_t * allowed) {
    constexpr int32_t BITS = 32;
    for (int32_t begin = 0; begin < n; begin += BITS, logits += BITS) {
        const uint32_t word = *allowed++;
        if (word == UINT32_MAX) {
            continue;
        }
        if (n - begin >= BITS) { // a constant number of iterations, so that the compiler uses vectors
            for (int32_t i = 0; i < BITS; ++i) {
                logits[i] = word >> i & 1 ? logits[i] : -INFINITY;
            }
        } else {
            for (int32_t i = 0; i < n - begin; ++i) {
                logits[i] = word >> i & 1 ? logits[i] : -INFINITY;
            }
        }
    }
}

// Write the `n_top` tokens of the highest logits, in order. Returns the logarithm of the sum of all exp(logit).
double tokenstream_top_tokens(const float * logits, int32_t n, int32_t n_top, int32_t * tokens) {
    Row & row = buffers.row;
    row.read(logits, n);
    if (n_top > 0) {
        std::vector<Candidate> & list = buffers.list;
        row.collect_top(n_top, -INFINITY, list);
        std::sort(list.begin(), list.end(), is_before);
        for (const Candidate & c : list) {
            *tokens++ = c.token;
        }
    }
    return row.highest() + std::log(row.softmax(1).sum);
}

} // extern "C"
