// Vectors, and rows of tables, for baselines/kernel.cpp. The vectors are the compiler's generic ones; what depends on the
// instruction set is here.

#pragma once
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int W = 16, REGISTERS = 32;
#else
constexpr int W = 8, REGISTERS = 16;
#endif
#if defined(__AVX512BF16__)
constexpr bool HALVES = true;  // there are instructions for products in bfloat16
#else
constexpr bool HALVES = false;
#endif
constexpr int64_t AHEAD = 4;  // rows are fetched this many entries before they are needed

typedef float Vec __attribute__((vector_size(4 * W), may_alias));
typedef float Loose __attribute__((vector_size(4 * W), aligned(4), may_alias));  // at any address

inline Vec load(const float* p) { return *reinterpret_cast<const Loose*>(p); }

inline Vec all(float x) {  // in every lane, bit by bit
#if defined(__AVX512F__)
    return _mm512_set1_ps(x);
#else
    return _mm256_set1_ps(x);
#endif
}

inline float total(Vec v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps(v);
#else
    const __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    return (half[0] + half[1]) + (half[2] + half[3]);
#endif
}

// One bit per lane: v > bound; with `unsure`, lanes that are not numbers count too.
template <bool unsure>
inline uint32_t above(Vec v, Vec bound) {
    constexpr int order = unsure ? _CMP_NLE_UQ : _CMP_GT_OQ;
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(v, bound, order);
#else
    return _mm256_movemask_ps(_mm256_cmp_ps(v, bound, order));
#endif
}

// sum + a · b, or with `halves` sum + a₀ · b₀ + a₁ · b₁ of the two bfloat16 numbers in the place of each float32.
template <bool halves>
inline Vec add_product(Vec sum, Vec a, Vec b) {
#if defined(__AVX512BF16__)
    if (halves) return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
#endif
    return sum + a * b;
}

inline float dot(const float* a, const float* b, int64_t d) {
    Vec sums[4] = {};
    int64_t k = 0;
    for (; k + 4 * W <= d; k += 4 * W)
        for (int i = 0; i < 4; i++) sums[i] += load(a + k + i * W) * load(b + k + i * W);
    for (; k + W <= d; k += W) sums[0] += load(a + k) * load(b + k);
    float sum = total((sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (; k < d; k++) sum += a[k] * b[k];
    return sum;
}

inline void fetch(const float* row, int64_t d) {
    for (int64_t k = 0; k < d; k += 16) __builtin_prefetch(row + k);
}

inline int64_t pieces(int64_t n, int64_t size) { return (n + size - 1) / size; }

struct Lanes {  // zeros at an aligned address
    struct Lane {
        Vec v;
    };
    std::vector<Lane> lanes;
    explicit Lanes(int64_t n) : lanes(pieces(n, W)) {}
    float* at(int64_t i) { return reinterpret_cast<float*>(lanes.data()) + i; }
    const float* at(int64_t i) const { return reinterpret_cast<const float*>(lanes.data()) + i; }
};

constexpr int64_t STRETCH_BYTES = 8 << 20;  // of a table whose rows are gathered: they stay in the L3 cache

// begin[b] … begin[b + 1]: the entries of bag b, where `bags` ascends.
inline std::vector<int64_t> begins(const int64_t* bags, int64_t entries, int64_t n) {
    std::vector<int64_t> begin(n + 1, 0);
    for (int64_t e = 0; e < entries; e++) begin[bags[e] + 1]++;
    for (int64_t b = 0; b < n; b++) begin[b + 1] += begin[b];
    return begin;
}

// visit(bag, entry) for every entry, a stretch of the table at a time, so that it stays in the cache while all bags draw
// on it. A bag's entries come in their order; those of the first stretch end at the first index beyond it, and so on.
template <class Index, class Visit>
void gather(const std::vector<int64_t>& begin, const Index* indices, const float* table, int64_t length, int64_t d, int threads,
            const Visit& visit) {
    const int64_t n = int64_t(begin.size()) - 1, stretch = std::max<int64_t>(1, STRETCH_BYTES / int64_t(sizeof(float) * d));
    std::vector<int64_t> next(begin.begin(), begin.end() - 1);
    for (int64_t from = 0; from < length; from += stretch) {
        const int64_t to = from + stretch < length ? from + stretch : INT64_MAX;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 64)
        for (int64_t b = 0; b < n; b++) {
            int64_t e = next[b];
            for (; e < begin[b + 1] && indices[e] < to; e++) {
                if (e + AHEAD < begin[b + 1] && indices[e + AHEAD] < to) fetch(table + indices[e + AHEAD] * d, d);
                visit(b, e);
            }
            next[b] = e;
        }
    }
}

}  // namespace
