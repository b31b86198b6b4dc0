#include "version.h"

namespace samdistill {

const char* version() noexcept { return SAMDISTILL_VERSION; }

}  // namespace samdistill
