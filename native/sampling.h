// Parameters that app/engine/llama/sampler.py passes to sampling.cpp.
#pragma once

#include "llama.h"

#include <cstdint>

// A temperature of 0 selects the most likely token. These values switch a part off: 0 for top_k, min_p and
// repeat_last_n, 1 for top_p and typical_p, 0 for the presence and the frequency penalty.
struct tokenstream_sampling {
    float temperature, top_p, min_p, typical_p;
    float repetition_penalty, presence_penalty, frequency_penalty;
    int32_t top_k;
    int32_t repeat_last_n; // tokens of prompt and answer that the repetition penalty counts
    int32_t n_bias;
    int32_t n_prompt;
    const llama_logit_bias * bias;
    const llama_token * prompt;
};
