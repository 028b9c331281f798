// A model as a list of steps: the loop over them, one call per token or chunk of a prompt.

#include "leanlm.h"

namespace {

struct Call {
    const int64_t *tokens;
    int64_t B, L, M;
    void *const *memories;
    float *logits;
    int64_t logits_stride;
    bool last_only;

    template <typename T> T *memory(int32_t slot) const { return static_cast<T *>(memories[slot]); }

    void advance(int64_t *position) const {
        for (int64_t b = 0; b < B; ++b) position[b] += L;
    }

    /* Of 8-bit keys or values; a slot below 0 where there are none. */
    float *scales(int32_t slot) const { return slot < 0 ? nullptr : memory<float>(slot); }
};

bool head(const leanlm_head_step &s, const Call &c) {
    const int64_t skipped = c.last_only ? c.L - 1 : 0, per_row = c.last_only ? c.L : 1;
    const leanlm_product product{s.weight, c.logits, c.logits_stride, s.bias, 0};
    return leanlm_matmul(&product, 1, s.x.data + skipped * s.x.stride, s.x.stride * per_row, c.last_only ? c.B : c.M,
                         s.precision) == 0;
}

bool attend(const leanlm_attend_step &s, const Call &c) {
    int64_t *position = c.memory<int64_t>(s.position_slot);
    const int refused =
        leanlm_attend(s.q.data, s.q.stride, s.k.data, s.k.stride, s.v.data, s.v.stride, s.y.data, s.y.stride, c.B, c.L, s.H,
                      s.Hkv, s.P, s.slots, s.window, s.scale, position, c.memory<int64_t>(s.start_slot),
                      c.memory<void>(s.k_slot), c.memory<void>(s.v_slot), s.dtype, c.scales(s.k_scale_slot),
                      c.scales(s.v_scale_slot));
    if (refused) return false;
    c.advance(position);
    return true;
}

bool telescope(const leanlm_telescope_step &s, const Call &c) {
    int64_t *position = c.memory<int64_t>(s.position_slot);
    if (leanlm_telescope(&s.how, c.B, c.L, position, c.memory<int64_t>(s.start_slot), c.memory<float>(s.k_slot),
                         c.memory<float>(s.v_slot), c.memory<float>(s.weight_k_slot), c.scales(s.weight_v_slot)))
        return false;
    c.advance(position);
    return true;
}

bool run(const leanlm_step &step, const Call &c) {
    switch (step.op) {
    case LEANLM_STEP_EMBED: {
        const auto &s = step.embed;
        return leanlm_embed(&s.weight, c.tokens, s.y.data, s.y.stride, c.M) == 0;
    }
    case LEANLM_STEP_NORM: {
        const auto &s = step.norm;
        return leanlm_norm(s.x.data, s.x.stride, s.y.data, s.y.stride, c.M, s.D, s.weight, s.bias, s.eps) == 0;
    }
    case LEANLM_STEP_MATMUL: {
        const auto &s = step.matmul;
        return leanlm_matmul(s.products, s.count, s.x.data, s.x.stride, c.M, s.precision) == 0;
    }
    case LEANLM_STEP_ACTIVATE: {
        const auto &s = step.activate;
        return leanlm_activate(s.kind, s.x.data, s.x.stride, s.z.data, s.z.stride, s.bias, s.y.data, s.y.stride, c.M, s.D) == 0;
    }
    case LEANLM_STEP_GATED_NORM: {
        const auto &s = step.gated_norm;
        return leanlm_gated_norm(s.y.data, s.y.stride, s.z.data, s.z.stride, c.M, s.D, s.weight, s.eps, s.groups, s.before) == 0;
    }
    case LEANLM_STEP_CONV: {
        const auto &s = step.conv;
        return leanlm_conv(s.x.data, s.x.stride, c.B, c.L, s.C, s.K, s.weight, s.bias, c.memory<void>(s.slot), s.dtype,
                           s.silu) == 0;
    }
    case LEANLM_STEP_SSD: {
        const auto &s = step.ssd;
        return leanlm_ssd(s.x.data, s.x.stride, s.B.data, s.B.stride, s.C.data, s.C.stride, s.a.data, s.a.stride, s.y.data,
                          s.y.stride, c.B, c.L, s.H, s.P, s.G, s.N, s.mode, s.A, s.dt_bias, s.dt_min, s.dt_max, s.D,
                          s.d_per_channel, c.memory<void>(s.slot), s.dtype) == 0;
    }
    case LEANLM_STEP_SCAN: {
        const auto &s = step.scan;
        return leanlm_scan(s.x.data, s.x.stride, s.a.data, s.a.stride, s.B.data, s.B.stride, s.C.data, s.C.stride, s.z.data,
                           s.z.stride, s.y.data, s.y.stride, c.B, c.L, s.I, s.N, s.A, s.dt_bias, s.D, c.memory<void>(s.slot),
                           s.dtype) == 0;
    }
    case LEANLM_STEP_ROTATE: {
        const auto &s = step.rotate;
        return leanlm_rotate(s.x.data, s.x.stride, c.B, c.L, s.heads, s.P, s.R, s.freq, c.memory<int64_t>(s.slot),
                             s.start_slot < 0 ? nullptr : c.memory<int64_t>(s.start_slot)) == 0;
    }
    case LEANLM_STEP_ATTEND: return attend(step.attend, c);
    case LEANLM_STEP_TELESCOPE: return telescope(step.telescope, c);
    case LEANLM_STEP_HEAD: return head(step.head, c);
    }
    return false;
}

} // namespace

extern "C" __attribute__((visibility("default"))) int leanlm_run(const leanlm_step *steps, int64_t n, const int64_t *tokens,
                                                                 int64_t B, int64_t L, void *const *memories, int64_t *position,
                                                                 float *logits, int64_t logits_stride, int32_t last_only) {
    const Call call{tokens, B, L, B * L, memories, logits, logits_stride, last_only != 0};
    for (int64_t i = 0; i < n; ++i)
        if (!run(steps[i], call)) return 1 + static_cast<int>(i);
    if (position) call.advance(position);
    return 0;
}
