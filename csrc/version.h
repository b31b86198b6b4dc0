#pragma once

namespace samdistill {

// The package's version, as samdistill/_version.py has it.
const char* version() noexcept;

}  // namespace samdistill
