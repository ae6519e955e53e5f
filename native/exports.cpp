// Functions for app/engine/llama, called through ctypes.
//
// Compiled into ggml-cpu by llama_cpp.cmake with the headers of the same llama.cpp.

#include "ggml-cpu.h"
#include "gguf.h"
#include "llama.h"
#include "sampling.h"

#include <cstddef>
#include <cstdint>

// Create threads that stay alive between decodes; returns null on failure. `poll`: spinning of idle threads, 0
// (none) to 100 (always). Free the pool with ggml_threadpool_free.
extern "C" ggml_threadpool * tokenstream_threadpool_new(int n_threads, uint32_t poll) {
    ggml_threadpool_params params = ggml_threadpool_params_default(n_threads);
    params.poll = poll;
    return ggml_threadpool_new(&params);
}

// Layout of the structs that Python declares. `name` is a struct (value: size in bytes) or struct.field (value:
// offset in bytes). The last entry has no name.
struct tokenstream_layout {
    const char * name;
    size_t value;
};

#define SIZE(type) {#type, sizeof(type)}
#define FIELD(type, field) {#type "." #field, offsetof(type, field)}

extern "C" const tokenstream_layout * tokenstream_layouts(void) {
    static const tokenstream_layout layouts[] = {
        SIZE(llama_batch),
        FIELD(llama_batch, token), FIELD(llama_batch, embd), FIELD(llama_batch, pos),
        FIELD(llama_batch, n_seq_id), FIELD(llama_batch, seq_id), FIELD(llama_batch, logits),
        SIZE(llama_model_params),
        FIELD(llama_model_params, n_gpu_layers), FIELD(llama_model_params, main_gpu),
        FIELD(llama_model_params, load_mode), FIELD(llama_model_params, no_alloc),
        FIELD(llama_model_params, vocab_only), FIELD(llama_model_params, kv_overrides),
        FIELD(llama_model_params, progress_callback),
        SIZE(llama_model_kv_override),
        FIELD(llama_model_kv_override, tag), FIELD(llama_model_kv_override, key),
        SIZE(llama_context_params),
        FIELD(llama_context_params, n_ctx), FIELD(llama_context_params, n_seq_max),
        FIELD(llama_context_params, n_batch), FIELD(llama_context_params, n_ubatch),
        FIELD(llama_context_params, n_outputs_max), FIELD(llama_context_params, n_threads),
        FIELD(llama_context_params, n_threads_batch), FIELD(llama_context_params, kv_unified),
        FIELD(llama_context_params, flash_attn_type), FIELD(llama_context_params, type_k),
        FIELD(llama_context_params, type_v), FIELD(llama_context_params, no_perf),
        FIELD(llama_context_params, embeddings), FIELD(llama_context_params, pooling_type),
        FIELD(llama_context_params, abort_callback), FIELD(llama_context_params, abort_callback_data),
        SIZE(llama_logit_bias),
        FIELD(llama_logit_bias, bias),
        SIZE(tokenstream_sampling),
        FIELD(tokenstream_sampling, repetition_penalty), FIELD(tokenstream_sampling, top_k),
        FIELD(tokenstream_sampling, n_bias), FIELD(tokenstream_sampling, bias), FIELD(tokenstream_sampling, prompt),
        SIZE(gguf_init_params),
        FIELD(gguf_init_params, ctx),
        {nullptr, 0},
    };
    return layouts;
}
