// Preparation of a pass over a graph: which operations share quantized rows, and which are computed with others.
//
// Results are the same, bit for bit, as if ggml computed the operations one by one. What is computed together:
//   - products of the same rows: query, key and value
//   - RMS norms, and the sums before them, with the quantization of their results
//   - SiLU(gate)*up with both products, and the quantization of the result
//   - attention with the quantization of its result
// Each of them saves a barrier, and memory traffic between the caches of the threads.

#include "passes.h"

#include "ggml-cpu-impl.h"
#include "ggml-impl.h"

#ifdef TOKENSTREAM_MATMUL_KERNEL

namespace tokenstream {

namespace {

constexpr int64_t MAX_APART = 96; // blocks
constexpr size_t MAX_DISTANCE = 8; // operations between products that are computed together

// Whether the bytes of two tensors overlap.
bool overlap(const ggml_tensor * a, const ggml_tensor * b) {
    return (char *) a->data < (char *) b->data + ggml_nbytes(b) && (char *) b->data < (char *) a->data + ggml_nbytes(a);
}

int64_t n_blocks_of_rows(const ggml_tensor * op) { return op->src[0]->ne[0]/BLOCK_SIZE*ggml_nrows(op->src[1]); }

bool has_f32_rows(const ggml_tensor * x) { return x->type == GGML_TYPE_F32 && x->nb[0] == sizeof(float); }

// Whether the rows of x and of a result have the same layout, and are the same memory or apart.
bool is_like(const ggml_tensor * x, const ggml_tensor * result) {
    return has_f32_rows(x) && ggml_are_same_shape(x, result) && ggml_are_same_stride(x, result)
        && (x->data == result->data || !overlap(x, result));
}

} // namespace

void Pass::reserve() {
    int64_t n_steps = 0, most = 0;
    for (size_t at = 0; at < order.size(); ++at) {
        if (has_panels(node(at))) {
            ++n_steps;
            const int64_t n = n_blocks_of_rows(node(at));
            most = std::max(most, n <= MAX_APART ? n*n_threads : n);
        }
    }
    if ((int64_t) steps.size() < n_steps) {
        steps.resize(n_steps);
    }
    if ((int64_t) taken.size() < n_steps*n_threads) {
        taken = std::vector<std::atomic<int64_t>>(n_steps*n_threads);
    }
    for (auto & count : taken) {
        count.store(0, std::memory_order_relaxed);
    }
    for (auto * activations : {&quantized, &handed_on}) {
        if ((int64_t) activations->size() < most) {
            activations->resize(most);
        }
    }
}

ggml_tensor * Pass::node(size_t at) const { return at < order.size() ? graph->nodes[order[at]] : nullptr; }

// Whether exactly `n` operations of the graph read the result of operation `at`, and no one else.
bool Pass::has_uses(size_t at, int n) const { return ggml_node_has_n_uses(graph, order[at], n); }

// Whether operations `from` to `to` neither read nor write the memory of a result.
bool Pass::is_free(const ggml_tensor * result, size_t from, size_t to) const {
    for (size_t at = from; at < to; ++at) {
        if (overlap(node(at), result)) {
            return false;
        }
        for (const ggml_tensor * source : node(at)->src) {
            if (source && overlap(source, result)) {
                return false;
            }
        }
    }
    return true;
}

void Pass::leave_out(ggml_tensor * node) {
    node->flags &= ~GGML_TENSOR_FLAG_COMPUTE;
    left_out.push_back(node);
}

// Add the products of the same rows that follow operation `at`.
void Pass::add_products(Step & step, size_t at) {
    for (size_t next = at + 1; next < order.size() && next <= at + MAX_DISTANCE; ++next) {
        ggml_tensor * product = node(next);
        if (overlap(product, step.products[0]->src[1])) {
            break; // it overwrites the rows
        }
        if (product->op == GGML_OP_MUL_MAT && has_panels(product) && product->src[1] == step.products[0]->src[1]
            && step.n_products < MAX_PRODUCTS && is_free(product, at, next)) {
            step.products[step.n_products++] = product;
            leave_out(product);
        }
    }
}

// Products that read quantized rows from operation `at` on, before a step quantizes others.
int Pass::n_readers(const ggml_tensor * rows, size_t at) const {
    int n = 0;
    for (size_t next = at; next < order.size() && next <= at + MAX_DISTANCE; ++next) {
        const bool is_product = node(next)->op == GGML_OP_MUL_MAT && has_panels(node(next));
        if (overlap(node(next), rows) || (has_panels(node(next)) && !(is_product && node(next)->src[1] == rows))) {
            break;
        }
        n += is_product;
    }
    return n;
}

// Compute the norm before operation `at` when its result is quantized, and the sum before the norm.
void Pass::add_norm(Step & step, size_t at) {
#ifdef TOKENSTREAM_ROWS
    if (at < 2) {
        return;
    }
    ggml_tensor * norm = node(at - 2), * scaled = node(at - 1);
    const ggml_tensor * x = norm->src[0];
    const bool is_norm = scaled == step.products[0]->src[1]
        && ggml_can_fuse(graph, order[at - 2], {GGML_OP_RMS_NORM, GGML_OP_MUL}) && order[at - 1] == order[at - 2] + 1
        && has_uses(at - 1, n_readers(scaled, at)) && has_f32_rows(x) && has_f32_rows(scaled);
    if (!is_norm) {
        return;
    }
    const ggml_tensor * weights = scaled->src[scaled->src[0] == norm];
    if (!has_f32_rows(weights) || weights->ne[0] != norm->ne[0]) {
        return;
    }
    for (int p = 0; p < step.n_products; ++p) {
        if (step.apart && overlap(step.products[p], x)) {
            return; // another thread may still read x
        }
    }
    step.norm = norm, step.scaled = scaled;
    leave_out(norm), leave_out(scaled);
    ggml_tensor * sum = at > 2 ? node(at - 3) : nullptr;
    // Apart, several threads would write the same row.
    if (sum == x && sum->op == GGML_OP_ADD && !step.apart && is_like(sum->src[0], sum) && is_like(sum->src[1], sum)) {
        step.sum = sum;
        leave_out(sum);
    }
#endif
}

// Compute SiLU(gate)*up with gate and up. Its only reader is the next product, which needs it quantized.
void Pass::add_gate(Step & step, size_t at) {
    const ggml_tensor * gate = step.products[0], * up = node(at + 1);
    ggml_tensor * glu = node(at + 2), * down = node(at + 3);
    if (down && step.n_products == 2 && up == step.products[1] && glu->op == GGML_OP_GLU && glu->src[0] == gate
        && glu->src[1] == up && ggml_get_glu_op(glu) == GGML_GLU_OP_SWIGLU && down->op == GGML_OP_MUL_MAT
        && has_panels(down) && down->src[1] == glu && has_uses(at, 1) && has_uses(at + 1, 1) && has_uses(at + 2, 1)) {
        step.gated = handed_on.data();
        leave_out(glu);
    }
}

// Whether the next product is the only reader of an attention's result, which is then needed quantized only.
bool Pass::hands_on(size_t at) const {
#ifdef TOKENSTREAM_ATTENTION
    const ggml_tensor * attention = node(at), * product = node(at + 1);
    if (!product || product->op != GGML_OP_MUL_MAT || !has_panels(product) || !is_our_attention(attention)) {
        return false;
    }
    const ggml_tensor * rows = graph->nodes[order[at] + 1]; // the heads of a position, as one row
    return rows == product->src[1] && rows->op == GGML_OP_RESHAPE && rows->src[0] == attention && has_uses(at, 1)
        && ggml_node_get_use_count(graph, order[at] + 1) == 1 && !(rows->flags & GGML_TENSOR_FLAG_OUTPUT)
        && ggml_is_contiguous(attention) && attention->ne[0] % BLOCK_SIZE == 0;
#else
    return false;
#endif
}

void Pass::prepare(ggml_cgraph * of, int n, bool fuse) {
    graph = of, n_threads = n;
    order.clear();
    for (int i = 0; i < graph->n_nodes; ++i) {
        const ggml_tensor * x = graph->nodes[i];
        if (!ggml_op_is_empty(x->op) && (x->flags & GGML_TENSOR_FLAG_COMPUTE)) {
            order.push_back(i);
        }
    }
    reserve();
    const ggml_tensor * rows = nullptr; // those that are quantized
    const ggml_tensor * reader = nullptr; // of the rows that are handed on
    Step * step = steps.data();
    for (size_t at = 0; at < order.size(); ++at) {
        ggml_tensor * op = node(at);
        if (op->op == GGML_OP_FLASH_ATTN_EXT && fuse && hands_on(at)) {
            op->extra = handed_on.data();
            attentions.push_back(op);
            reader = node(at + 1);
        }
        if (has_panels(op) && (op->flags & GGML_TENSOR_FLAG_COMPUTE)) {
            *step = {};
            step->products[0] = op, step->n_products = 1;
            step->taken = taken.data() + (step - steps.data())*n_threads;
            if (op == reader) {
                step->activations = handed_on.data();
            } else {
                step->activations = quantized.data();
                step->quantize = op->src[1] != rows;
                step->apart = n_blocks_of_rows(op) <= MAX_APART;
                rows = op->src[1];
                if (fuse && op->op == GGML_OP_MUL_MAT) {
                    add_products(*step, at);
                    add_gate(*step, at);
                    reader = step->gated ? node(at + 3) : reader;
                    if (step->quantize) {
                        add_norm(*step, at);
                    }
                }
            }
            op->extra = step++;
        }
        if (rows && op != rows && !ggml_is_empty(op) && overlap(op, rows)) {
            rows = nullptr; // computed in place
        }
    }
}

void Pass::finish() {
    for (ggml_tensor * node : left_out) {
        node->flags |= GGML_TENSOR_FLAG_COMPUTE;
    }
    left_out.clear();
    for (ggml_tensor * node : attentions) {
        node->extra = nullptr;
    }
    attentions.clear();
}

} // namespace tokenstream

#endif

void tokenstream::quantize_result(const float * x, int64_t n, void * to, int64_t index) {
#ifdef TOKENSTREAM_MATMUL_KERNEL
    quantize(x, n/BLOCK_SIZE, (Activations *) to + n/BLOCK_SIZE*index);
#endif
}
