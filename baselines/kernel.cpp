// Operations of a training step on the CPU: the meaning is that of baselines/ops.py and of torch's Adam.
//
// Plain C interface on raw pointers, called through ctypes by baselines/compiled.py, which also builds this file. Matrices
// are row-major, contiguous float32; indices are int64. Every result is worked out by one thread in a fixed order, so it
// depends neither on the number of threads nor on how the work is shared out.

#include "kernel_encode.h"

extern "C" {

// Whether encode() can screen, and no other unit of this CPU multiplies bfloat16 much faster still.
int screens() {
#if defined(__AMX_BF16__)
    return 0;
#else
    return HALVES;
#endif
}

// Entries of x wᵀ + bias above bound [m]; with k > 0, those of them among which a token's k largest positive ones are. With
// `screen` by products in bfloat16 first. Returns what was found, for take(), and how many entries it holds.
void* encode(const float* x, const float* w, const float* bias, const float* bound, int64_t k, int64_t n, int64_t d, int64_t m,
             int screen, int threads, int64_t* count) {
    std::unique_ptr<Found> found;
    if (HALVES && screen) found = Encoder<HALVES>(x, w, bias, bound, k, n, d, m).run(threads);
    if (!found) found = Encoder<false>(x, w, bias, bound, k, n, d, m).run(threads);
    *count = found->begin[n];
    return found.release();
}

// Flat indices (token · m + latent), ascending, and values of what encode() found; frees it.
void take(void* handle, int64_t m, int64_t* flat, float* values) {
    const std::unique_ptr<Found> found(static_cast<Found*>(handle));
    for (size_t t = 0; t + 1 < found->begin.size(); t++)
        for (int64_t e = found->begin[t]; e < found->begin[t + 1]; e++) flat[e] = int64_t(t) * m + found->latents[e];
    std::copy(found->values.begin(), found->values.end(), values);
}

// out[b] = Σ over the entries of bag b of weight · table[index]; `bags` ascends. The table has `length` rows.
void sums_of_rows(const int64_t* bags, const int64_t* indices, const float* weights, int64_t entries, const float* table, int64_t length,
                  int64_t d, int64_t n, int threads, float* out) {
    memset(out, 0, sizeof(float) * n * d);
    gather(begins(bags, entries, n), indices, table, length, d, threads, [=](int64_t b, int64_t e) {
        const float weight = weights[e], *row = table + indices[e] * d;
        float* sum = out + b * d;
#pragma omp simd
        for (int64_t k = 0; k < d; k++) sum[k] += weight * row[k];
    });
}

// out[e] = ⟨g[row], w[col]⟩ of every entry; `rows` ascends. g has n rows, w has m.
void dots_of_rows(const int64_t* rows, const int64_t* cols, int64_t entries, const float* g, const float* w, int64_t n, int64_t m,
                  int64_t d, int threads, float* out) {
    gather(begins(rows, entries, n), cols, w, m, d, threads, [=](int64_t b, int64_t e) { out[e] = dot(g + b * d, w + cols[e] * d, d); });
}

// Order of the entries by latent, then as they come: a counting sort.
void by_latent(const int64_t* cols, int64_t entries, int64_t m, int64_t* order) {
    std::vector<int64_t> place = begins(cols, entries, m);
    for (int64_t e = 0; e < entries; e++) order[place[cols[e]]++] = e;
}

// along[r] = ⟨w_r, g_r⟩ and squares[r] = ‖g_r − along[r] w_r‖²; where w is null, along is left alone and squares[r] = ‖g_r‖².
void across(const float* g, const float* w, int64_t rows, int64_t d, int threads, float* along, double* squares) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const float* gradient = g + r * d;
        if (w == nullptr) {
            squares[r] = dot(gradient, gradient, d);
            continue;
        }
        const float* row = w + r * d;
        const float c = along[r] = dot(gradient, row, d);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t k = 0; k < d; k++) sum += (gradient[k] - c * row[k]) * (gradient[k] - c * row[k]);
        squares[r] = sum;
    }
}

struct Rates {
    float step, first, second, keep, root, epsilon, clip;  // lr / (1 − β₁ᵗ), 1 − β₁, 1 − β₂, β₂, √(1 − β₂ᵗ), ε, gradient's factor
};

// Adam on every row: mean and square are its moments. Where `along` is not null, rows are unit: the gradient's component
// along the row (from across()) is left out, and the row is scaled back to unit norm.
void adam(float* w, float* mean, float* square, const float* g, const float* along, int64_t rows, int64_t d, const Rates* rates,
          int threads) {
    const Rates s = *rates;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        float *row = w + r * d, *m = mean + r * d, *v = square + r * d;
        const float *gradient = g + r * d, c = along ? along[r] : 0;
        float norm = 0;
#pragma omp simd reduction(+ : norm)
        for (int64_t k = 0; k < d; k++) {
            const float x = s.clip * (gradient[k] - c * row[k]);
            m[k] += s.first * (x - m[k]);
            v[k] = s.keep * v[k] + s.second * x * x;
            row[k] -= s.step * m[k] / (std::sqrt(v[k]) / s.root + s.epsilon);
            norm += row[k] * row[k];
        }
        if (along == nullptr) continue;
        const float scale = 1 / std::max(std::sqrt(norm), 1e-8f);
#pragma omp simd
        for (int64_t k = 0; k < d; k++) row[k] *= scale;
    }
}

}  // extern "C"
