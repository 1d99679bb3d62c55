// The encoder of baselines/kernel.cpp: large entries of a product, without the product in memory.

#pragma once
#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>

#include "kernel_rows.h"

namespace {

constexpr int TOKENS = REGISTERS == 32 ? 12 : 6;  // two registers hold the sums of each
constexpr int LATENTS = 2 * W;                    // a tile is TOKENS × LATENTS sums
constexpr double CROWDED = 0.05;                  // share of entries to work out again from which screening costs more than it saves
constexpr float TINY = 1e-18f;                    // squares of smaller numbers are zero

// Lengths of a row and of what rounding takes from it, rounded up.
struct Lengths {
    float whole = 0, lost = 0;
};

// Packs a row into every width-th place of `out`: as it is, or rounded to bfloat16, two numbers in the place of one.
template <bool halves, int width>
Lengths pack(const float* row, int64_t d, float* out) {
    if (!halves) {
        for (int64_t k = 0; k < d; k++) out[k * width] = row[k];
        return {};
    }
    thread_local std::vector<uint16_t> rounded;
    rounded.assign(d + d % 2, 0);
    uint16_t* to = rounded.data();
    float whole = 0, lost = 0;
#pragma omp simd reduction(+ : whole, lost)
    for (int64_t k = 0; k < d; k++) {
        uint32_t bits;
        memcpy(&bits, row + k, 4);
        const uint32_t half = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, again = half << 16;  // to the nearest, ties to even
        float back;
        memcpy(&back, &again, 4);
        to[k] = uint16_t(half);
        whole += row[k] * row[k];
        lost += (row[k] - back) * (row[k] - back);
    }
    for (int64_t k = 0; k < d; k += 2) memcpy(out + k / 2 * width, to + k, 4);
    return {1.001f * std::sqrt(whole) + TINY, 1.001f * std::sqrt(lost) + TINY};
}

struct Hit {
    int32_t token, latent;
    float value;
};

// What one block of latents found, tile of tokens by tile of tokens; a token's latents ascend.
struct Block {
    std::vector<Hit> hits;
    std::vector<int64_t> begin;  // first hit of each tile of tokens, and the end
};

// Entries by token, then by latent.
struct Found {
    std::vector<int64_t> begin;  // [n + 1] where those of each token begin
    std::vector<int32_t> latents;
    std::vector<float> values;
};

// The largest numbers of every token so far: at least k once there are so many, less than 2 k.
struct Best {
    std::vector<std::vector<float>> largest;
    std::vector<float> floor;  // just below the k-th largest, or 0: smaller numbers are not among the k largest positive ones
    explicit Best(int64_t n) : largest(n), floor(n, 0) {}

    void add(int64_t token, float value, size_t k) {
        if (!(value > floor[token])) return;
        largest[token].push_back(value);
        if (largest[token].size() >= 2 * k) trim(token, k);
    }
    void trim(int64_t token, size_t k) {
        auto& of = largest[token];
        if (of.size() < k) return;
        std::nth_element(of.begin(), of.begin() + k - 1, of.end(), std::greater<float>());
        of.resize(k);
        floor[token] = std::max(floor[token], std::nextafter(of[k - 1], -INFINITY));
    }
};

// Finds entries of x wᵀ + bias above bound [m], or with k > 0 those of them that can be among a token's k largest positive
// ones: tiles of the product are summed in registers and tested there. With `halves` these are products in bfloat16, in
// half the time, and entries that can be large enough are worked out in float32. None is missed: with x̃, w̃ the rounded
// vectors, |⟨x, w⟩ − ⟨x̃, w̃⟩| ≤ ‖x − x̃‖‖w‖ + ‖x̃‖‖w − w̃‖, and all sums of d terms together are wrong by
// (d + 4) · 2⁻²² · ‖x‖‖w‖ at most.
template <bool halves>
class Encoder {
    const float *x, *w, *bias, *bound;
    const int64_t k, n, d, m;
    const int64_t depth = halves ? pieces(d, 2) : d;  // places that a packed row takes
    // Latents whose packed weights fill most of the L2 cache: a block, which one thread multiplies with all tokens.
    const int64_t width = LATENTS * std::max<int64_t>(1, std::max<int64_t>(sysconf(_SC_LEVEL2_CACHE_SIZE), 512 << 10) * 5 / 8 /
                                                             int64_t(sizeof(float) * LATENTS * depth));
    Lanes packed;                  // tokens, by tiles
    std::vector<float> near, far;  // of a token: what its own rounding, and its latents', change per unit of their lengths

    // A block's latents, by tiles, and what their products are compared with.
    struct Rows {
        Lanes packed, bias, limit, whole, lost;
        Rows(int64_t size, int64_t depth) : packed(size * depth), bias(size), limit(size), whole(size), lost(size) {}
    };

    void pack_tokens(int64_t tile) {
        for (int64_t t = tile * TOKENS; t < std::min(n, (tile + 1) * TOKENS); t++) {
            const Lengths length = pack<halves, TOKENS>(x + t * d, d, packed.at(tile * depth * TOKENS + t % TOKENS));
            near[t] = length.lost + (d + 4) * 0x1p-22f * length.whole;
            far[t] = 1.01f * length.whole;
        }
    }

    Rows pack_latents(int64_t first, int64_t size) const {
        const int64_t padded = pieces(size, LATENTS) * LATENTS;
        Rows rows(padded, depth);
        std::fill(rows.limit.at(0), rows.limit.at(padded), FLT_MAX);  // nothing is found beyond the last latent
        for (int64_t j = 0; j < size; j++) {
            const int64_t l = first + j;
            const Lengths length = pack<halves, LATENTS>(w + l * d, d, rows.packed.at(j / LATENTS * depth * LATENTS + j % LATENTS));
            const float spare = halves && std::isfinite(bound[l]) ? 0x1p-21f * (std::fabs(bound[l]) + std::fabs(bias[l])) : 0;
            *rows.bias.at(j) = bias[l], *rows.limit.at(j) = bound[l] - spare;
            *rows.whole.at(j) = length.whole, *rows.lost.at(j) = length.lost;
        }
        return rows;
    }

    void multiply(const float* tokens, const float* latents, Vec (&sums)[2][TOKENS]) const {
        Vec a[TOKENS] = {}, b[TOKENS] = {};  // registers
        for (int64_t i = 0; i < depth; i++, tokens += TOKENS, latents += LATENTS) {
            const Vec left = load(latents), right = load(latents + W);
#pragma GCC unroll 12
            for (int t = 0; t < TOKENS; t++) {
                const Vec token = all(tokens[t]);
                a[t] = add_product<halves>(a[t], token, left);
                b[t] = add_product<halves>(b[t], token, right);
            }
        }
#pragma GCC unroll 12
        for (int t = 0; t < TOKENS; t++) sums[0][t] = a[t], sums[1][t] = b[t];
    }

    // The entries of half a tile that are large enough, or can be: latents first + j … first + j + W − 1.
    void keep(const Vec (&sums)[TOKENS], int64_t token, int64_t first, int64_t j, const Rows& rows, Best& best,
              std::vector<Hit>& hits) const {
        const Vec b = load(rows.bias.at(j)), limit = load(rows.limit.at(j));
        for (int64_t t = token; t < std::min(n, token + TOKENS); t++) {
            Vec error = {}, lowest = limit;
            if (halves) error = all(near[t]) * load(rows.whole.at(j)) + all(far[t]) * load(rows.lost.at(j));
            const Vec v = sums[t - token] + b + error;  // as large as it can be
            if (k > 0) lowest = limit > all(best.floor[t]) ? limit : all(best.floor[t]);
            for (uint32_t bits = above<halves>(v, lowest); bits; bits &= bits - 1) {
                const int lane = __builtin_ctz(bits);
                if (first + j + lane >= m) break;
                hits.push_back({int32_t(t), int32_t(first + j + lane), v[lane]});
                if (k > 0) best.add(t, halves ? v[lane] - 2.001f * error[lane] - 0x1p-20f * std::fabs(v[lane]) : v[lane], size_t(k));
            }
        }
    }

    // A block of latents, all tokens; false where too many entries are to be worked out again.
    bool encode(int64_t first, Best& best, Block& out) const {
        const int64_t size = std::min(width, m - first);
        const Rows rows = pack_latents(first, size);
        Vec sums[2][TOKENS];
        for (int64_t tile = 0; tile < pieces(n, TOKENS); tile++) {
            out.begin.push_back(int64_t(out.hits.size()));
            for (int64_t j = 0; j < size; j += LATENTS) {
                multiply(packed.at(tile * depth * TOKENS), rows.packed.at(j * depth), sums);
                for (int half = 0; half < 2; half++) keep(sums[half], tile * TOKENS, first, j + half * W, rows, best, out.hits);
            }
            if (halves && k == 0 && tile >= 3 && out.hits.size() > CROWDED * (tile + 1) * TOKENS * size) return false;
        }
        out.begin.push_back(int64_t(out.hits.size()));
        return true;
    }

    // What the blocks found, by token; with k > 0 only what lies above [n] floors.
    Found ordered(const std::vector<Block>& blocks, const std::vector<float>& floor, int threads) const {
        Found found{std::vector<int64_t>(n + 1, 0), {}, {}};
        const auto each = [&](const auto& visit) {
#pragma omp parallel for num_threads(threads) schedule(static)
            for (int64_t tile = 0; tile < pieces(n, TOKENS); tile++)
                for (const Block& b : blocks)
                    for (int64_t e = b.begin[tile]; e < b.begin[tile + 1]; e++)
                        if (k == 0 || !(b.hits[e].value <= floor[b.hits[e].token])) visit(b.hits[e]);
        };
        each([&](const Hit& hit) { found.begin[hit.token + 1]++; });
        for (int64_t t = 0; t < n; t++) found.begin[t + 1] += found.begin[t];
        found.latents.resize(found.begin[n]), found.values.resize(found.begin[n]);
        std::vector<int64_t> next(found.begin);
        each([&](const Hit& hit) {
            found.latents[next[hit.token]] = hit.latent;
            found.values[next[hit.token]++] = hit.value;
        });
        return found;
    }

    // Works out in float32 what was found, and keeps what lies above its bound.
    void look_again(Found& found, int threads) const {
        gather(found.begin, found.latents.data(), w, m, d, threads, [&](int64_t t, int64_t e) {
            found.values[e] = dot(x + t * d, w + found.latents[e] * d, d) + bias[found.latents[e]];
        });
        int64_t kept = 0, e = 0;
        for (int64_t t = 1; t <= n; t++) {
            for (; e < found.begin[t]; e++)
                if (found.values[e] > bound[found.latents[e]])
                    found.latents[kept] = found.latents[e], found.values[kept++] = found.values[e];
            found.begin[t] = kept;
        }
        found.latents.resize(kept), found.values.resize(kept);
    }

   public:
    Encoder(const float* x, const float* w, const float* bias, const float* bound, int64_t k, int64_t n, int64_t d, int64_t m)
        : x(x), w(w), bias(bias), bound(bound), k(k), n(n), d(d), m(m), packed(pieces(n, TOKENS) * TOKENS * depth), near(n), far(n) {}

    // Null where too many entries are to be worked out again.
    std::unique_ptr<Found> run(int threads) {
        std::vector<Block> blocks(pieces(m, width));
        std::vector<Best> best(threads, Best(k > 0 ? n : 0));  // of the latents that a thread has seen
        std::atomic<bool> crowded{false};
#pragma omp parallel num_threads(threads)
        {
#pragma omp for schedule(static)
            for (int64_t tile = 0; tile < pieces(n, TOKENS); tile++) pack_tokens(tile);
#pragma omp for schedule(dynamic)
            for (size_t i = 0; i < blocks.size(); i++)
                if (!crowded && !encode(int64_t(i) * width, best[omp_get_thread_num()], blocks[i])) crowded = true;
#pragma omp for schedule(static)
            for (int64_t t = 0; t < n * (k > 0); t++) {
                for (int i = 1; i < threads; i++)
                    for (float value : best[i].largest[t]) best[0].add(t, value, size_t(k));
                best[0].trim(t, size_t(k));
            }
        }
        if (crowded) return nullptr;
        auto found = std::make_unique<Found>(ordered(blocks, best[0].floor, threads));
        if (halves) look_again(*found, threads);
        return found;
    }
};

}  // namespace
