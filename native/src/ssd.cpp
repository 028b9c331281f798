/* State-space duality: single steps, and chunks of tokens as small dense products (Dao & Gu 2024, section 6).
 *
 * B texts  L tokens  H heads  P head width  G groups  N state width  Q tokens of a chunk
 *
 * A step is bound by the memory the state comes from: it is read and written once. In chunks the states are panels
 * [N, TILE_COLUMNS] of their channels, float32 until the last token has been read.
 */
#include "elementary.h"
#include "workspace.h"
#include "threads.h"
#include "tile.h"
#include "transpose.h"

namespace leanlm::LEANLM_NAMESPACE {
namespace {

constexpr int64_t Q = 64;
constexpr int64_t PASS = 4 * Q; /* tokens whose scores are held at once */
constexpr int64_t AHEAD = 4096; /* bytes of a state that are fetched early */
constexpr int64_t FEW = 8;      /* tokens up to which steps are faster than chunks */

struct Ssd {
    const float *x, *Bm, *Cm, *a;
    float *y;
    int64_t x_stride, B_stride, C_stride, a_stride, y_stride;
    int64_t B, L, H, P, G, N;
    int32_t mode;
    const float *A, *dt_bias;
    float dt_min, dt_max;
    const float *D;
    bool d_per_channel;

    int64_t group(int64_t h) const { return h * G / H; }

    /* What every token's decay and input are made of: log_decay[i] and dt[i] of head h, tokens m .. m + W - 1 of the batch. */
    LEANLM_INLINE void gates(int64_t h, int64_t m, int64_t tokens, float *log_decay, float *dt) const {
        float raw[W] = {};
        for (int64_t i = 0; i < tokens; i++) raw[i] = a[(m + i) * a_stride + h];
        if (mode == 1) {
            store(log_decay, -softplus(load(raw)));
            store(dt, splat(1.0f));
            return;
        }
        const Vec step = at_most(at_least(softplus(load(raw) + dt_bias[h]), splat(dt_min)), splat(dt_max));
        store(log_decay, step * A[h]);
        store(dt, step);
    }

    float skip(int64_t h, int64_t p) const { return D ? D[d_per_channel ? h * P + p : h] : 0.0f; }
};

/* R rows of a state: S = decay S + input B^T, out[r] = S[r] . C. */
template <int R, class T>
LEANLM_INLINE void step_rows(T *state, int64_t N, const float *input, float decay, const float *Bm, const float *Cm, float *out) {
    Vec inputs[R], products[R] = {};
    for (int r = 0; r < R; r++) inputs[r] = splat(input[r]);
    int64_t n = 0;
    for (; n + W <= N; n += W) {
        const Vec b = load(Bm + n), c = load(Cm + n);
        for (int64_t i = 0; i < int64_t(R * W * sizeof(T)); i += 64) fetch(state + R * n, AHEAD + i);
        for (int r = 0; r < R; r++) {
            const Vec s = fma(load(state + r * N + n), splat(decay), inputs[r] * b);
            store(state + r * N + n, s);
            products[r] = fma(s, c, products[r]);
        }
    }
    if (n < N) {
        const Vec b = load_some(Bm + n, N - n), c = load_some(Cm + n, N - n);
        for (int r = 0; r < R; r++) {
            const Vec s = fma(load_some(state + r * N + n, N - n), splat(decay), inputs[r] * b);
            store_some(state + r * N + n, s, N - n);
            products[r] = fma(s, c, products[r]);
        }
    }
    for (int r = 0; r < R; r++) out[r] = sum(products[r]);
}

/* One token and head; `state` [P, N]. */
template <class T>
void step(const Ssd &s, int64_t m, int64_t h, T *state) {
    constexpr int R = 4;
    float log_decay[W], dt[W];
    s.gates(h, m, 1, log_decay, dt);
    const float decay = exp(splat(log_decay[0]))[0];
    const float *x = s.x + m * s.x_stride + h * s.P;
    const float *Bm = s.Bm + m * s.B_stride + s.group(h) * s.N, *Cm = s.Cm + m * s.C_stride + s.group(h) * s.N;
    float *y = s.y + m * s.y_stride + h * s.P;
    for (int64_t p = 0; p < s.P; p += R) {
        const int64_t rows = s.P - p < R ? s.P - p : R;
        float input[R], out[R];
        for (int64_t r = 0; r < rows; r++) input[r] = x[p + r] * dt[0];
        if (rows == R)
            step_rows<R>(state + p * s.N, s.N, input, decay, Bm, Cm, out);
        else
            for (int64_t r = 0; r < rows; r++) step_rows<1>(state + (p + r) * s.N, s.N, input + r, decay, Bm, Cm, out + r);
        for (int64_t r = 0; r < rows; r++) y[p + r] = out[r] + s.skip(h, p + r) * x[p + r];
    }
}

/* A few tokens, the state in float32 meanwhile. */
template <class T>
void steps(const Ssd &s, T *states) {
    parallel_for(s.B * s.H, [&](int64_t task) {
        const int64_t b = task / s.H, h = task % s.H, size = s.P * s.N;
        T *state = states + task * size;
        if (s.L == 1) return step(s, b, h, state);
        float *wide = workspace(Workspace::Own, size);
        for (int64_t i = 0; i < size; i += W) store_up_to(wide + i, load_up_to(state + i, size - i), size - i);
        for (int64_t t = 0; t < s.L; t++) step(s, b * s.L + t, h, wide);
        for (int64_t i = 0; i < size; i += W) store_up_to(state + i, load_up_to(wide + i, size - i), size - i);
    });
}

/* What the heads of a group share in one chunk: B transposed [N, Q], C [Q, N] and scores [t, s] = C[t] . B[s], s <= t. */
struct Shared {
    float *Bt, *C, *scores;

    static int64_t size(const Ssd &s) { return (2 * s.N + Q) * Q; }
    Shared(const Ssd &s, float *memory) : Bt(memory), C(Bt + s.N * Q), scores(C + s.N * Q) {}
};

void share(const Ssd &s, int64_t m, int64_t g, int64_t tokens, const Shared &shared) {
    const float *Bm = s.Bm + m * s.B_stride + g * s.N, *Cm = s.Cm + m * s.C_stride + g * s.N;
    transpose_rows([&](int64_t t) { return Bm + t * s.B_stride; }, tokens, s.N, shared.Bt, Q, Q);
    for (int64_t t = 0; t < tokens; t++) memcpy(shared.C + t * s.N, Cm + t * s.C_stride, s.N * sizeof(float));
    for (int64_t column = 0; column < tokens; column += TILE_COLUMNS)
        for_tile_rows(tokens, [&](int64_t t, auto rows) {
            if (t + rows <= column) return;
            Tile<rows> tile;
            tile.clear();
            tile.add_product(s.N, shared.C + t * s.N, s.N, 1, shared.Bt + column, Q);
            tile.write(shared.scores + t * Q + column, Q);
        });
}

/* One head's view of a chunk, in a thread's own memory. Decays are in powers of two. */
struct Chunk {
    double decay[Q];             /* summed since the chunk began. Differences of these are wanted: after one strong decay
                                    float32 would have lost the digits of the weak ones that follow */
    float dt[Q], reach[Q];       /* reach: what a token still sees of the state the chunk was given */
    float *weights, *x, *scaled; /* [Q, Q]; [panels, Q, TILE_COLUMNS] each: inputs, what is left of them at the end, times dt */
    float survival;

    static int64_t size(const Ssd &s) { return Q * Q + 2 * Q * padded(s.P); }
    Chunk(const Ssd &s, float *memory) : weights(memory), x(memory + Q * Q), scaled(x + Q * padded(s.P)) {}
};

/* d[i] = 2^(from - decay[i]) for i < n rounded up to two whole vectors, where that is at most 1. */
LEANLM_INLINE void powers(double from, const double *decay, int64_t n, float *d) {
    static_assert(Q % (2 * W) == 0);
    for (int64_t i = 0; i < n; i += 2 * W) {
        for (int64_t j = i; j < i + 2 * W; j++) d[j] = static_cast<float>(from - decay[j]);
        Vec x[2] = {load(d + i), load(d + i + W)};
        exp2s_of_negative(x);
        store(d + i, x[0]);
        store(d + i + W, x[1]);
    }
}

void read_gates(const Ssd &s, int64_t m, int64_t h, int64_t tokens, Chunk &chunk) {
    float log_decay[Q] = {};
    for (int64_t t = 0; t < tokens; t += W) s.gates(h, m + t, tokens - t < W ? tokens - t : W, log_decay + t, chunk.dt + t);
    double total = 0, decayed[Q];
    for (int64_t t = 0; t < Q; t++) {
        chunk.decay[t] = total += log_decay[t] * double{LOG2_E};
        decayed[t] = -total;
    }
    powers(0, decayed, Q, chunk.reach);
    chunk.survival = chunk.reach[tokens - 1];
}

void read_inputs(const Ssd &s, int64_t m, int64_t h, int64_t tokens, Chunk &chunk) {
    float keep[Q];
    powers(chunk.decay[tokens - 1], chunk.decay, tokens, keep);
    for (int64_t t = 0; t < tokens; t++) {
        const float *from = s.x + (m + t) * s.x_stride + h * s.P;
        for (int64_t p = 0; p < padded(s.P); p += W) {
            const Vec x = p < s.P ? load_up_to(from + p, s.P - p) : zeros();
            const int64_t at = (p / TILE_COLUMNS * Q + t) * TILE_COLUMNS + p % TILE_COLUMNS;
            store(chunk.x + at, x);
            store(chunk.scaled + at, x * (keep[t] * chunk.dt[t]));
        }
    }
}

/* weights[t, i] = 2^(decay[t] - decay[i]) scores[t, i] dt[i] for i <= t, zeros after that as far as a tile may read. */
void weigh(int64_t tokens, const float *scores, Chunk &chunk) {
    for (int64_t t = 0; t < tokens; t++) {
        float *row = chunk.weights + t * Q;
        powers(chunk.decay[t], chunk.decay, t + 1, row);
        for (int64_t i = 0; i <= t; i += W) store(row + i, load(row + i) * load(scores + t * Q + i) * load(chunk.dt + i));
        for (int64_t i = t + 1; i < t + TILE_ROWS && i < Q; i++) row[i] = 0.0f;
    }
}

/* y = reach (C S) + weights x + D x. */
void write_outputs(const Ssd &s, int64_t m, int64_t h, int64_t tokens, const Chunk &chunk, const float *C, const float *state) {
    for (int64_t p = 0; p < s.P; p += TILE_COLUMNS) {
        const float *panel = state + p * s.N, *x = chunk.x + p * Q;
        float skips[TILE_COLUMNS];
        for (int i = 0; i < TILE_COLUMNS; i++) skips[i] = p + i < s.P ? s.skip(h, p + i) : 0.0f;
        for_tile_rows(tokens, [&](int64_t t, auto rows) {
            Tile<rows> tile;
            tile.clear();
            tile.add_product(s.N, C + t * s.N, s.N, 1, panel, TILE_COLUMNS);
            for (int r = 0; r < rows; r++) tile.scale(r, chunk.reach[t + r]);
            tile.add_product(t + rows, chunk.weights + t * Q, Q, 1, x, TILE_COLUMNS);
            for (int half = 0; half < 2; half++)
                for (int r = 0; r < rows; r++)
                    tile.at[r][half] =
                        fma(load(skips + half * W), load(x + (t + r) * TILE_COLUMNS + half * W), tile.at[r][half]);
            tile.write_some(s.y + (m + t) * s.y_stride + h * s.P + p, s.y_stride, s.P - p);
        });
    }
}

/* S = survival S + B^T (what is left of the inputs). */
void update_state(const Ssd &s, int64_t tokens, const Chunk &chunk, const float *Bt, float *state) {
    for (int64_t p = 0; p < s.P; p += TILE_COLUMNS)
        for_tile_rows(s.N, [&](int64_t n, auto rows) {
            float *panel = state + p * s.N + n * TILE_COLUMNS;
            Tile<rows> tile;
            tile.read(panel, TILE_COLUMNS);
            for (int r = 0; r < rows; r++) tile.scale(r, chunk.survival);
            tile.add_product(tokens, Bt + n * Q, Q, 1, chunk.scaled + p * Q, TILE_COLUMNS);
            tile.write(panel, TILE_COLUMNS);
        });
}

/* A state [P, N] as panels, and back. */
template <class T>
void read_state(const Ssd &s, const T *state, float *panels) {
    for (int64_t p = 0; p < s.P; p += TILE_COLUMNS)
        transpose_rows([&](int64_t i) { return state + (p + i) * s.N; }, s.P - p, s.N, panels + p * s.N, TILE_COLUMNS,
                       TILE_COLUMNS);
}

template <class T>
void write_state(const Ssd &s, const float *panels, T *state) {
    for (int64_t p = 0; p < s.P; p += TILE_COLUMNS)
        transpose_back(panels + p * s.N, TILE_COLUMNS, s.P - p < TILE_COLUMNS ? s.P - p : TILE_COLUMNS, s.N, state + p * s.N,
                       s.N);
}

/* The tokens t .. t + count - 1 of every text, count <= PASS; `carried` [B, H, panels, N, TILE_COLUMNS] holds the states between
 * the first and the last. */
template <class T>
void pass(const Ssd &s, int64_t t, int64_t count, float *carried, T *states) {
    const int64_t chunks = (count + Q - 1) / Q, share_size = Shared::size(s);
    float *memory = workspace(Workspace::Shared, s.B * s.G * chunks * share_size);
    const auto tokens = [&](int64_t c) { return count - c * Q < Q ? count - c * Q : Q; };
    parallel_for(s.B * s.G * chunks, [&](int64_t task) {
        const int64_t c = task % chunks, g = task / chunks % s.G, b = task / chunks / s.G;
        share(s, b * s.L + t + c * Q, g, tokens(c), Shared(s, memory + task * share_size));
    });
    parallel_for(s.B * s.H, [&](int64_t task) {
        const int64_t b = task / s.H, h = task % s.H;
        float *state = carried + task * s.N * padded(s.P);
        Chunk chunk(s, workspace(Workspace::Own, Chunk::size(s)));
        if (t == 0) read_state(s, states + task * s.P * s.N, state);
        for (int64_t c = 0; c < chunks; c++) {
            const int64_t m = b * s.L + t + c * Q;
            const Shared shared(s, memory + ((b * s.G + s.group(h)) * chunks + c) * share_size);
            read_gates(s, m, h, tokens(c), chunk);
            read_inputs(s, m, h, tokens(c), chunk);
            weigh(tokens(c), shared.scores, chunk);
            write_outputs(s, m, h, tokens(c), chunk, shared.C, state);
            update_state(s, tokens(c), chunk, shared.Bt, state);
        }
        if (t + count == s.L) write_state(s, state, states + task * s.P * s.N);
    });
}

template <class T>
void sequence(const Ssd &s, T *states) {
    float *carried = workspace(Workspace::Carried, s.B * s.H * s.N * padded(s.P));
    for (int64_t t = 0; t < s.L; t += PASS) pass(s, t, s.L - t < PASS ? s.L - t : PASS, carried, states);
}

} // namespace

int ssd(const float *x, int64_t x_stride, const float *Bm, int64_t B_stride, const float *Cm, int64_t C_stride, const float *a,
        int64_t a_stride, float *y, int64_t y_stride, int64_t B, int64_t L, int32_t H, int32_t P, int32_t G, int32_t N,
        int32_t mode, const float *A, const float *dt_bias, float dt_min, float dt_max, const float *D, int32_t d_per_channel,
        void *state, int32_t dtype) {
    const Ssd s{x, Bm, Cm,   a, y,       x_stride, B_stride, C_stride, a_stride, y_stride,          B, L, H, P, G,
                N, mode, A, dt_bias, dt_min,   dt_max,   D,        d_per_channel != 0};
    with_dtype(dtype, [&](auto *typed) {
        auto *states = static_cast<decltype(typed)>(state);
        if (L < FEW)
            steps(s, states);
        else
            sequence(s, states);
    });
    return 0;
}

} // namespace leanlm::LEANLM_NAMESPACE
