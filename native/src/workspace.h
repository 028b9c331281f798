/* Memory for intermediate results: one growing block per thread and purpose, kept from call to call. */
#pragma once

#include <cstdint>

namespace leanlm {

/* Who holds what: `Shared` blocks belong to the calling thread and are filled by all, the others to the thread that asks. */
enum class Workspace { Shared, Carried, Own, Count };

/* At least `floats` floats, aligned to 64 bytes, with arbitrary contents; valid until the thread asks for more of the same. */
float *workspace(Workspace purpose, int64_t floats);

} // namespace leanlm
