/* leanlm's CPU library: a plain C interface. No Python, no torch.
 *
 * Activations are float32, row-major; a "stride" counts elements from one row (one token) to the next. B texts, L tokens of
 * each, M = B L rows, row b L + t being token t of text b. Functions run on the library's threads and return when done; a
 * result does not depend on how many threads there are. Called from one thread at a time.
 */
#ifndef LEANLM_H
#define LEANLM_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { LEANLM_F32 = 0, LEANLM_BF16 = 1, LEANLM_F16 = 2, LEANLM_I8 = 3 } leanlm_dtype;
typedef enum { LEANLM_FLOAT = 0, LEANLM_GROUPED = 1, LEANLM_TERNARY = 2 } leanlm_kind;

/* Of the activations that integers are multiplied with. INT8: a scale for every 32 columns, beside ternary weights for every 256. */
typedef enum { LEANLM_EXACT = 0, LEANLM_INT8 = 1 } leanlm_precision;

/* Library: the instruction set in use ("portable", "avx2", "avx512"), the threads, and their change. 0 on success. */
int leanlm_version(void);
const char *leanlm_isa(void);
int leanlm_set_isa(const char *name);
int leanlm_threads(void);
int leanlm_set_threads(int threads);

/* A matrix [rows, columns] in the layouts of leanlm.ops.packing and leanlm.model.packed. */
typedef struct {
    int32_t kind;        /* leanlm_kind */
    int32_t dtype;       /* of the values (LEANLM_FLOAT) or of the scales */
    int64_t rows, columns;
    const void *data;    /* values, or codes: dense little-endian bits row by row (ternary: 2 bits holding trit + 1) */
    int64_t row_bytes;   /* from one row of data to the next */
    const void *scales;  /* [rows, groups], or [regions] of a ternary matrix */
    const uint8_t *zeros;   /* [rows, groups]; NULL: 2^(bits - 1) */
    const int32_t *g_idx;   /* [columns], the group of every column; NULL: consecutive */
    const int32_t *starts;  /* ternary: [regions], first row or column of each */
    int32_t bits, groups, regions, along_rows;
} leanlm_weight;

/* y[M, rows] = x[M, columns] W^T + bias (NULL: none); `accumulate`: added to what y holds. */
typedef struct {
    leanlm_weight weight;
    float *y;
    int64_t y_stride;
    const float *bias;
    int32_t accumulate;
} leanlm_product;

/* `count` products of the same x[M, columns]. */
int leanlm_matmul(const leanlm_product *products, int64_t count, const float *x, int64_t x_stride, int64_t M, int32_t precision);

/* x[M, columns] = rows `tokens` [M] of the table. */
int leanlm_embed(const leanlm_weight *table, const int64_t *tokens, float *x, int64_t x_stride, int64_t M);

/* Norms of every row over D values. rms: x / sqrt(mean x^2 + eps) w; layer (bias not NULL): (x - mean) / sqrt(var + eps) w + b. */
int leanlm_norm(const float *x, int64_t x_stride, float *y, int64_t y_stride, int64_t M, int64_t D, const float *weight,
                const float *bias, float eps);

/* In place: y = rms(y silu(z)) w, or (before) rms(y) w silu(z), per group of D / groups channels. */
int leanlm_gated_norm(float *y, int64_t y_stride, const float *z, int64_t z_stride, int64_t M, int64_t D, const float *weight,
                      float eps, int32_t groups, int32_t before);

typedef enum {
    LEANLM_GELU = 0,      /* y = gelu(x), exact (erf) form */
    LEANLM_SILU = 1,      /* y = silu(x) */
    LEANLM_SILU_MUL = 2,  /* y = silu(x) z */
    LEANLM_MUL_SILU = 3,  /* y = x silu(z + bias) (bias [D] may be NULL) */
} leanlm_activation;
int leanlm_activate(int32_t kind, const float *x, int64_t x_stride, const float *z, int64_t z_stride, const float *bias, float *y,
                    int64_t y_stride, int64_t M, int64_t D);

/* Causal depthwise convolution over the tokens of each text, in place on x [M, C] (ops.conv): taps weight [K, C] (last row: the
 * current token), bias [C] or NULL, tail [B, C, K - 1] of `dtype`, newest last, updated; silu afterwards where `silu`. */
int leanlm_conv(float *x, int64_t x_stride, int64_t B, int64_t L, int64_t C, int32_t K, const float *weight, const float *bias,
                void *tail, int32_t dtype, int32_t silu);

/* State-space duality (ops.ssd) with Mamba-2's surroundings, y [M, H P]:
 *   decay mode 0 (Mamba-2): dt = clamp(softplus(a + dt_bias), dt_min, dt_max), log_decay = dt A (A [H] < 0), input x dt;
 *   decay mode 1 (Discrete Mamba-2): log_decay = -softplus(a), input x.
 * x [M, H P], Bm and Cm [M, G N], a [M, H]; state [B, H, P, N] of `dtype` (F32 or BF16), updated. D [H] or [H P] (d_per_channel)
 * adds D x to y. */
int leanlm_ssd(const float *x, int64_t x_stride, const float *Bm, int64_t B_stride, const float *Cm, int64_t C_stride,
               const float *a, int64_t a_stride, float *y, int64_t y_stride, int64_t B, int64_t L, int32_t H, int32_t P,
               int32_t G, int32_t N, int32_t mode, const float *A, const float *dt_bias, float dt_min, float dt_max,
               const float *D, int32_t d_per_channel, void *state, int32_t dtype);

/* Selective scan (ops.selective_scan) with Mamba-1's surroundings: dt = softplus(a + dt_bias [I]), y = scan + D x, then times
 * silu(z). x, a, z, y [M, I]; Bm, Cm [M, N]; A [I, N] (< 0); state [B, I, N] of `dtype`, updated. */
int leanlm_scan(const float *x, int64_t x_stride, const float *a, int64_t a_stride, const float *Bm, int64_t B_stride,
                const float *Cm, int64_t C_stride, const float *z, int64_t z_stride, float *y, int64_t y_stride, int64_t B,
                int64_t L, int64_t I, int32_t N, const float *A, const float *dt_bias, const float *D, void *state,
                int32_t dtype);

/* Rotary positions in place (ops.rotate): x [M, heads P], half-split over the first R channels of each head; the angle of channel
 * pair i at position p is p freq[i] (freq [R / 2]); token t of text b stands at position[b] + t, less start[b] where start is
 * given. */
int leanlm_rotate(float *x, int64_t x_stride, int64_t B, int64_t L, int32_t heads, int32_t P, int32_t R, const float *freq,
                  const int64_t *position, const int64_t *start);

/* Attention of L new tokens per text (model/attention.py): writes k, v [M, Hkv P] into the caches k_cache, v_cache
 * [B, slots, Hkv, P] of `dtype` at slot (position mod slots), and y [M, H P] = softmax(scale q . k) v over the keys from
 * start[b] to the token itself, of these only the newest `window` (0: all). position [B] is the number of tokens read before; not
 * updated here. With several tokens and a ring (window) the new keys that would overwrite old ones still seen are handled.
 * LEANLM_I8 (caches alone have it): codes c of the values c scale, one scale per row of P, largest size / 127, in k_scales and
 * v_scales [B, slots, Hkv]; otherwise these are not used. */
int leanlm_attend(const float *q, int64_t q_stride, const float *k, int64_t k_stride, const float *v, int64_t v_stride, float *y,
                  int64_t y_stride, int64_t B, int64_t L, int32_t H, int32_t Hkv, int32_t P, int64_t slots, int64_t window,
                  float scale, const int64_t *position, const int64_t *start, void *k_cache, void *v_cache, int32_t dtype,
                  float *k_scales, float *v_scales);

typedef struct { float *data; int64_t stride; } leanlm_rows; /* a buffer of activations, or columns of one */

/* How a telescoping cache is merged and looked at, and buffers [M, ..] of a call: queries and keys after rotary, values, outputs,
 * and, where rule is LEANLM_LEARNED, the logarithms of the tokens' weights [M, G]. Two entries are added and multiplied by `factor`,
 * or (0) their mean is taken, weighted by their softmax. norm_k, norm_v: weights of RMS norms, or NULL. cap: 0 for none. */
typedef enum { LEANLM_LEARNED = 0, LEANLM_SELF_SCORE, LEANLM_L2, LEANLM_ALIKE } leanlm_rule;
typedef struct {
    leanlm_rows q, k, v, y, weights;
    const int32_t *merges; /* [levels]: the slot that two entries of a level are merged into */
    const float *norm_k, *norm_v;
    int32_t levels, slots, H, G, P, Q, rule, masked, mixed;
    float scale, factor, eps, cap;
} leanlm_telescoping;

/* Telescoping attention of L tokens of B texts, of whose documents position - start tokens were read before; the caches k
 * [B, slots, G, P], v [B, slots, G, Q] and the logarithms of their weights [B, slots, G] (weight_v: NULL, or with LEANLM_L2), -inf where
 * a slot is empty, go on. 0 on success. */
int leanlm_telescope(const leanlm_telescoping *call, int64_t B, int64_t L, const int64_t *position, const int64_t *start,
                     float *k, float *v, float *weight_k, float *weight_v);

/* A program: a model lowered to steps over fixed buffers. Every step does for the B L rows of a call what the function of its
 * name does; `slot`s are indices into the call's table of state tensors. */
typedef enum {
    LEANLM_STEP_EMBED = 0,
    LEANLM_STEP_NORM,
    LEANLM_STEP_MATMUL,
    LEANLM_STEP_ACTIVATE,
    LEANLM_STEP_GATED_NORM,
    LEANLM_STEP_CONV,
    LEANLM_STEP_SSD,
    LEANLM_STEP_SCAN,
    LEANLM_STEP_ROTATE,
    LEANLM_STEP_ATTEND,
    LEANLM_STEP_TELESCOPE,
    LEANLM_STEP_HEAD, /* a product of the last token of every text, or of all, into the call's logits */
} leanlm_op;

typedef struct { leanlm_weight weight; leanlm_rows y; } leanlm_embed_step;
typedef struct { leanlm_rows x, y; int64_t D; const float *weight, *bias; float eps; } leanlm_norm_step;
typedef struct { const leanlm_product *products; int64_t count; leanlm_rows x; int32_t precision; } leanlm_matmul_step;
typedef struct { leanlm_weight weight; leanlm_rows x; const float *bias; int32_t precision; } leanlm_head_step;
typedef struct { leanlm_rows x, z, y; int64_t D; const float *bias; int32_t kind; } leanlm_activate_step;
typedef struct { leanlm_rows y, z; int64_t D; const float *weight; float eps; int32_t groups, before; } leanlm_gated_norm_step;
typedef struct { leanlm_rows x; int64_t C; const float *weight, *bias; int32_t K, slot, dtype, silu; } leanlm_conv_step;
typedef struct {
    leanlm_rows x, B, C, a, y;
    const float *A, *dt_bias, *D;
    float dt_min, dt_max;
    int32_t H, P, G, N, mode, d_per_channel, slot, dtype;
} leanlm_ssd_step;
typedef struct {
    leanlm_rows x, a, B, C, z, y;
    const float *A, *dt_bias, *D;
    int64_t I;
    int32_t N, slot, dtype;
} leanlm_scan_step;
typedef struct {
    leanlm_rows x;
    const float *freq;
    int32_t heads, P, R, slot, start_slot; /* positions [B], and where they are counted from, or -1 */
} leanlm_rotate_step;
typedef struct {
    leanlm_rows q, k, v, y;
    int64_t slots, window;
    int32_t H, Hkv, P, dtype, k_slot, v_slot, position_slot, start_slot; /* positions go on by L tokens afterwards */
    int32_t k_scale_slot, v_scale_slot;                                  /* LEANLM_I8; else -1 */
    float scale;
} leanlm_attend_step;

typedef struct {
    leanlm_telescoping how;
    int32_t k_slot, v_slot, weight_k_slot, weight_v_slot; /* weight_v: or -1 */
    int32_t position_slot, start_slot;                    /* positions go on by L tokens afterwards */
} leanlm_telescope_step;

typedef struct {
    int32_t op; /* leanlm_op */
    union {
        leanlm_embed_step embed;
        leanlm_norm_step norm;
        leanlm_matmul_step matmul;
        leanlm_activate_step activate;
        leanlm_gated_norm_step gated_norm;
        leanlm_conv_step conv;
        leanlm_ssd_step ssd;
        leanlm_scan_step scan;
        leanlm_rotate_step rotate;
        leanlm_attend_step attend;
        leanlm_telescope_step telescope;
        leanlm_head_step head;
    };
} leanlm_step;

/* Run the steps for tokens [B, L], with the state tensors `memories`; logits [B, L, V], or [B, 1, V] with last_only. 0, or
 * the number of the step, from 1 on, that was refused (nothing after it was done). `position` [B] or NULL: the tokens that each
 * text has read, L more when all steps are done. */
int leanlm_run(const leanlm_step *steps, int64_t n, const int64_t *tokens, int64_t B, int64_t L, void *const *memories,
               int64_t *position, float *logits, int64_t logits_stride, int32_t last_only);

/* Rows of n trits, five to a byte (ceil(n / 5) bytes), into rows of 2-bit codes (ceil(n / 4) bytes, unused bits 0). */
void leanlm_codes_of_trits(const uint8_t *packed, int64_t R, int64_t n, uint8_t *codes);

/* The sum of a block of memory read once by all threads: for measuring bandwidth. */
double leanlm_read(const void *data, int64_t bytes);

#ifdef __cplusplus
}
#endif
#endif
